"""Keeps web pages out of a server that asks for no key.

A page of any site can make its reader's browser send requests to 127.0.0.1 (cross-site requests), and a site whose name
is made to mean 127.0.0.1 can read the answers too (DNS rebinding). Browsers name both: in Origin, and in Host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from server.errors import ForbiddenError

# Endings that the public DNS does not have.
_PRIVATE = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


def check_browser(
    headers: Headers, cors_origins: Collection[str], trusted_hosts: Collection[str]
) -> None:
    """Raises ForbiddenError for what a page of another site may have sent. Programs send no Origin."""
    host = headers.get("host", "")
    name = _name(host)
    if host and not _is_private(name) and name not in trusted_hosts:
        raise ForbiddenError(
            f"Without an API key this server answers to addresses and local names only, not to {name[:100]!r}."
            " Set --trusted-hosts, or keys."
        )
    origin = headers.get("origin")
    if origin is None or origin in cors_origins or "*" in cors_origins:
        return
    if urlsplit(origin).netloc.lower() != host.lower():
        raise ForbiddenError(
            f"This server answers no pages of {origin[:100]!r}. Set --cors-origins if it should."
        )


def _name(host: str) -> str:
    """Without the port, and without an IPv6 address's brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host.lower()


def _is_private(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE)
    return True
