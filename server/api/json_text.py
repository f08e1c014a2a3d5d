"""JSON text for event streams, at the speed of one chunk per token."""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import Any

# Line ends to Unicode though not to SSE: many clients split with their language's own line splitter.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def quoted(text: str) -> str:
    """A JSON string."""
    shown: str = encode_basestring(text)
    return shown if shown.isascii() else shown.translate(_LINE_ENDS)


def compact(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() else text.translate(_LINE_ENDS)


def sse(value: Any, event: str | None = None) -> bytes:
    """One whole server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {compact(value)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
