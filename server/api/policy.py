"""What the door checks: keys, addresses, sizes and times, as plain values. Made from the settings by __main__."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from server.api.keys import Keyring


@dataclass(slots=True)
class AdminPort:
    """number: known once the port is open; no request comes before that. takes_metrics: /metrics is only there then."""

    number: int | None = None
    takes_metrics: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """max_body_bytes: of a request. stall_seconds: in which a body must arrive. request_seconds: in which a request must
    be answered to the end; None: no limit. admin_port: None where there is none. cors_origins: pages of other sites that
    may use the API. trusted_hosts: names that a server without keys answers to, besides addresses and local names.
    """

    keyring: Keyring = field(default_factory=Keyring)
    max_body_bytes: int = 4 * 2**20
    stall_seconds: float = 30.0
    request_seconds: float | None = None
    admin_port: AdminPort | None = None
    cors_origins: Collection[str] = ()
    trusted_hosts: Collection[str] = ()
