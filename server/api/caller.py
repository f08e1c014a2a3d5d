"""Who sends a request, and how it is called. Written into the ASGI scope by the door, read by the routes."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from fastapi import Request

STATE = "lorachat"


@dataclass(frozen=True, slots=True)
class Caller:
    """key_id: names the API key without telling it; empty where none is asked for. request_id: theirs, or ours."""

    key_id: str
    request_id: str

    def cache_scope(self, salt: str | None) -> str:
        """Prompts are shared in the prefix cache only between requests of the same key and the same salt."""
        return f"{self.key_id}/{salt or ''}" if self.key_id or salt else ""


def key_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def caller_of(request: Request) -> Caller:
    caller = request.scope.get(STATE)
    return caller if isinstance(caller, Caller) else Caller("", new_request_id())
