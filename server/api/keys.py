"""API keys: which there are, whose a credential is, and what its holder may do. Where keys come from is key_file.py's.

Only SHA-256 digests are held. A slow, salted hash protects secrets that can be guessed; these keys are random
(new_key: 256 bits), so guessing is hopeless at any speed, and a slow hash would only let strangers burn processor time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.api.quota import Quota

ENVIRONMENT = "env-"  # names of keys from the environment: env-1, env-2, …
ADMIN = "admin"  # the name of the admin key from the environment
_PREFIX = "lorachat-"  # so that secret scanners and people know one when they see it


@dataclass(frozen=True, slots=True)
class Key:
    """name: of its holder, for logs, cache and turns. digest: SHA-256 of the key, 32 bytes. models: None is all.

    A model's name allows all its versions; NAME@VERSION only that one.
    """

    name: str
    digest: bytes
    models: frozenset[str] | None = None
    is_admin: bool = False
    quota: Quota = field(default_factory=Quota)

    def may_use(self, model_id: str) -> bool:
        """model_id: `base`, NAME or NAME@VERSION, as the catalogue says it and not as a caller spells it."""
        return (
            self.models is None
            or model_id in self.models
            or model_id.partition("@")[0] in self.models
        )


@dataclass(frozen=True, slots=True)
class Keyring:
    """fixed: keys from the environment. from_file: the keys of the key file now; None where there is no file."""

    fixed: Sequence[Key] = ()
    from_file: Callable[[], Sequence[Key]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for: none was ever configured. A file without keys opens nothing."""
        return self.from_file is None and all(key.is_admin for key in self.fixed)

    @property
    def has_admin(self) -> bool:
        return any(key.is_admin for key in self._all())

    def find(self, credential: str) -> Key | None:
        """Every key is compared, in constant time, so that timing tells nothing about any of them."""
        digest = digest_of(credential)
        found = None
        for key in self._all():
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def _all(self) -> list[Key]:
        return [*(self.from_file() if self.from_file else ()), *self.fixed]


def environment_keys(api_keys: Sequence[str], admin_key: str | None) -> list[Key]:
    keys = [Key(f"{ENVIRONMENT}{n}", digest_of(key)) for n, key in enumerate(api_keys, 1)]
    if admin_key is not None:
        keys.append(Key(ADMIN, digest_of(admin_key), is_admin=True))
    return keys


def new_key() -> str:
    """256 bits of the system's randomness."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
