"""What the door checks: keys, addresses, sizes and times, as plain values. Made from the settings by __main__."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from server.api.keys import Keyring

MAX_HEAD_BYTES = 16 * 2**10
# In a request's ASGI state: says whether its connection has a place from which it may be asked for an answer.
MAY_ASK = "lorachat.may_ask"


@dataclass(slots=True)
class AdminPort:
    """number: known once the port is open; no request comes before that. takes_metrics: /metrics is only there then."""

    number: int | None = None
    takes_metrics: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """max_body_bytes: of a request. max_head_bytes, max_headers: of its address and headers. stall_seconds: in which a
    body must arrive. request_seconds: in which a request must be answered to the end; None: no limit. admin_port: None
    where there is none. cors_origins: of pages of other sites that may use the API. trusted_hosts: names that a server
    without keys answers to, besides addresses and local names. max_bodies_bytes: of all requests in work together.
    """

    keyring: Keyring = field(default_factory=Keyring)
    max_body_bytes: int = 4 * 2**20
    max_bodies_bytes: int = 64 * 2**20
    max_head_bytes: int = MAX_HEAD_BYTES
    max_headers: int = 100
    stall_seconds: float = 30.0
    request_seconds: float | None = None
    admin_port: AdminPort | None = None
    cors_origins: Collection[str] = ()
    trusted_hosts: Collection[str] = ()
