"""The key file: TOML with one [[key]] table per key. Read again when it changes, so that a key is revoked at once."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from server.api.keys import ADMIN, ENVIRONMENT, Key
from server.api.quota import Quota
from server.errors import KeyFileError

log = logging.getLogger("lorachat.api")

MAX_BYTES = 2**20
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_Limit = Annotated[int, Field(ge=1, le=10**9)]


class _Entry(BaseModel):
    """One [[key]] table. A field that is not known is an error: it may have been meant as a restriction."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(pattern=NAME)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    models: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    admin: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    key: list[_Entry] = []


class KeyFile:
    """The keys of a file. refresh() may be called from any thread; one at a time."""

    def __init__(self, path: Path) -> None:
        """Raises KeyFileError if it cannot be read."""
        self._path = path
        self._data: bytes | None = _read(path)  # None after it could not be read
        self._keys = _parse(self._data or b"", path, {})

    def keys(self) -> Sequence[Key]:
        return self._keys

    def refresh(self) -> None:
        """Take the file's keys if it has changed. One that cannot be read leaves the old keys valid, and is logged."""
        try:
            data = _read(self._path)
        except KeyFileError as error:
            # Once, not every second for as long as it lasts.
            if self._data is not None:
                log.error("%s The keys read before stay valid.", error)
            self._data = None
            return
        if data == self._data:
            return
        self._data = data
        try:
            self._keys = _parse(data, self._path, {key.name: key for key in self._keys})
        except KeyFileError as error:
            log.error("%s The keys read before stay valid.", error)
            return
        log.info("%s: %d keys", self._path, len(self._keys))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_BYTES:
        raise KeyFileError(f"The key file {path} is larger than {MAX_BYTES} bytes.")
    return data


def _parse(data: bytes, path: Path, before: dict[str, Key]) -> list[Key]:
    """before: keys by name; those whose limits are the same go on with what they have used of them.

    Errors never quote a value: somebody may have put a key where its digest belongs.
    """
    try:
        entries = _File.model_validate(tomllib.loads(data.decode())).key
    except UnicodeDecodeError:
        raise KeyFileError(f"The key file {path} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        where = str(error).rpartition("(")[2].rstrip(")")  # its words may quote the text
        raise KeyFileError(f"The key file {path} is not TOML ({where}).") from None
    except ValidationError as error:
        detail = error.errors(include_input=False, include_url=False)[0]
        raise KeyFileError(f"The key file {path}: {_place(detail['loc'])}: {_words(detail['type'], detail['msg'])}."
        ) from None  # fmt: skip
    keys: list[Key] = []
    for entry in entries:
        if entry.name == ADMIN or entry.name.startswith(ENVIRONMENT):
            raise KeyFileError(
                f"The key file {path}: {entry.name!r} is a name of keys from the environment."
            )
        if any(entry.name == key.name for key in keys):
            raise KeyFileError(f"The key file {path}: two keys are named {entry.name!r}.")
        digest = bytes.fromhex(entry.sha256)
        twin = next((key for key in keys if key.digest == digest), None)
        if twin is not None:
            raise KeyFileError(
                f"The key file {path}: {twin.name!r} and {entry.name!r} are one key."
            )
        quota = Quota(entry.requests_per_minute, entry.tokens_per_minute)
        old = before.get(entry.name)
        if old is not None and old.quota.limits == quota.limits:
            quota = old.quota
        models = None if entry.models is None else frozenset(entry.models)
        keys.append(Key(entry.name, digest, models, entry.admin, quota))
    return keys


def _place(location: tuple[int | str, ...]) -> str:
    if len(location) >= 2:
        field = "".join(f" '{part}'" for part in location[2:3])
        return f"key number {int(location[1]) + 1}{field}"
    return "'" + ".".join(str(part) for part in location) + "'"


def _words(kind: str, message: str) -> str:
    return {
        "extra_forbidden": "there is no such field",
        "missing": "is required",
        "string_pattern_mismatch": "a name is letters, digits, '.', '_' and '-'; a digest is 64 hexadecimal digits,"
        " as `python -m server key NAME` prints them",
    }.get(kind, message[0].lower() + message[1:])
