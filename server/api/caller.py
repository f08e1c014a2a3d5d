"""Who sends a request, and how it is called. Written into the ASGI scope by the door, read by the routes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import Enum, auto

from fastapi import Request

from server.api.keys import Key

STATE = "lorachat"


class Administration(Enum):
    """What a request may do at the admin routes."""

    ALLOWED = auto()
    FORBIDDEN = auto()  # it has no admin key
    CLOSED = auto()  # nobody has one, and there is no admin port
    ELSEWHERE = auto()  # the admin port is another


@dataclass(frozen=True, slots=True)
class Caller:
    """key: None where none is asked for. request_id: theirs, or ours. timeout_seconds: for the whole request."""

    request_id: str
    key: Key | None = None
    administration: Administration = Administration.CLOSED
    timeout_seconds: float | None = None

    @property
    def key_name(self) -> str:
        """Names the API key without telling it; empty where none is asked for."""
        return "" if self.key is None else self.key.name

    def may_use(self, model_id: str) -> bool:
        """model_id: as the catalogue says it."""
        return self.key is None or self.key.may_use(model_id)

    def cache_scope(self, salt: str | None) -> str:
        """Prompts are shared in the prefix cache only between requests of the same key and the same salt."""
        return f"{self.key_name}/{salt or ''}" if self.key_name or salt else ""


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def caller_of(request: Request) -> Caller:
    caller = request.scope.get(STATE)
    return caller if isinstance(caller, Caller) else Caller(new_request_id())
