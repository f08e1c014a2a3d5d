"""Who may use the operator's routes."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from fastapi import Request

from server.errors import AuthenticationError

HEADER = "x-admin-key"


@dataclass(frozen=True, slots=True)
class AdminAccess:
    """is_open: no API key is asked for, so that whoever reaches the server may operate it. key: the operator's."""

    is_open: bool
    key: str | None


def require_admin(request: Request) -> None:
    """Raises AuthenticationError unless the caller is the operator."""
    access: AdminAccess = request.app.state.admin
    if access.is_open:
        return
    given = request.headers.get(HEADER, "").encode()
    if access.key is None or not hmac.compare_digest(given, access.key.encode()):
        raise AuthenticationError(
            f"This route is the operator's. Send the admin key as '{HEADER}: KEY'."
        )
