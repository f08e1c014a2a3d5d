"""Who may use the admin routes: `Depends(require_admin)` on each of them.

An admin key opens them, at the admin port where there is one and else at the public port. Without an admin key only an
admin port opens them (the address it listens on, this machine by default, is the key). With neither they are closed.
"""

from __future__ import annotations

from fastapi import HTTPException, Request

from server.api.caller import Administration, caller_of
from server.api.keys import Key, Keyring
from server.errors import ForbiddenError

# What the admin port answers; nothing else.
ADMIN_PREFIX = "/admin"
ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
SHARED_PATHS = frozenset({"/health", "/ready", "/version", "/metrics"})


def require_admin(request: Request) -> None:
    """Raises ForbiddenError (403), or a 404 like that of any unknown address where there is another admin port."""
    match caller_of(request).administration:
        case Administration.ALLOWED:
            return
        case Administration.ELSEWHERE:
            raise HTTPException(404)
        case Administration.FORBIDDEN:
            raise ForbiddenError("This needs an admin key.")
        case Administration.CLOSED:
            raise ForbiddenError(
                "Administration is closed. Start the server with LORACHAT_ADMIN_KEY, a key with `admin = true` in"
                " the key file, or --admin-port."
            )


def administration(
    keyring: Keyring, key: Key | None, *, has_port: bool, on_port: bool
) -> Administration:
    """has_port: whether there is an admin port; on_port: whether the request came to it."""
    if has_port and not on_port:
        return Administration.ELSEWHERE
    if key is not None and key.is_admin:
        return Administration.ALLOWED
    if keyring.has_admin:
        return Administration.FORBIDDEN
    return Administration.ALLOWED if on_port else Administration.CLOSED


def is_on_admin_port(path: str) -> bool:
    """Whether the admin port answers this path."""
    return (
        path == ADMIN_PREFIX
        or path.startswith(f"{ADMIN_PREFIX}/")
        or path in ADMIN_PATHS
        or path in SHARED_PATHS
    )
