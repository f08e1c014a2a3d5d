"""Makes an API key: the key itself, for its holder, and its table for the key file."""

from __future__ import annotations

from dataclasses import dataclass

from server.api.keys import digest_of, new_key


@dataclass(frozen=True, slots=True)
class MadeKey:
    key: str
    table: str  # TOML


def make_key(name: str, *, is_admin: bool = False) -> MadeKey:
    """name: as the key file wants it."""
    key = new_key()
    lines = ["[[key]]", f'name = "{name}"', f'sha256 = "{digest_of(key).hex()}"']
    if is_admin:
        lines.append("admin = true")
    return MadeKey(key, "\n".join(lines) + "\n")
