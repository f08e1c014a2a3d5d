"""What goes from a gateway to an engine and back: a request, and the pieces of its answer. All small to pickle."""

from __future__ import annotations

from dataclasses import dataclass

from server.api.caller import Administration

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class WireCaller:
    """What the door found out about the sender; the credential stays there.

    key_name: None where no key is asked for. models: that the key is for; None is all. tokens_per_minute, tokens_left:
    of the key's quota; None is no limit.
    """

    request_id: str
    administration: Administration
    timeout_seconds: float | None = None
    key_name: str | None = None
    models: frozenset[str] | None = None
    is_admin: bool = False
    tokens_per_minute: int | None = None
    tokens_left: int = 0


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A whole HTTP request; header names in lower case, as ASGI has them."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    caller: WireCaller


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that the request has used since this was last said."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Said at once: the request has left the queue, and this engine has it."""

    replica: str


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an answer. Bytes of the body follow it."""

    status: int
    headers: Headers

    @property
    def is_event_stream(self) -> bool:
        return dict(self.headers).get(b"content-type", b"").startswith(b"text/event-stream")


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer that is not streamed, and which engine gave it."""

    replica: str
    head: Head
    body: bytes
