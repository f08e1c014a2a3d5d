"""Remembers which adapter versions passed their checks, so that a restart reads no weights before they are asked for.

The rule is that of digest_cache.py: it holds for as long as the version's files have the same paths, sizes and
modification times, for the same base, kernel and release of this server. Whatever is then loaded is still read against
its digest. An entry that cannot be read counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.model.digest_cache import SETTLED_SECONDS, write_entry
from server.model.version import Version
from server.version import VERSION

FORMAT = "lorachat-checked/1"


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks of a version found. digest: of its values. probe: "passed", or why nothing was compared."""

    digest: str
    probe: str


class CheckedCache:
    """folder: where entries lie. scope: what a check depends on besides the version: base, kernel."""

    def __init__(self, folder: Path, *scope: str) -> None:
        self._folder = folder / "checked"
        self._scope = [VERSION, *scope]

    def find(self, version: Version) -> Checked | None:
        try:
            entry = json.loads(self._path(version).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.get("about") != self._about(version):
            return None
        try:
            return Checked(**entry["checked"])
        except (KeyError, TypeError):
            return None

    def remember(self, version: Version, checked: Checked) -> None:
        newest = max((time_ns for _, _, time_ns in version.state), default=0)
        if time.time() - newest / 1e9 > SETTLED_SECONDS:
            entry = {"about": self._about(version), "checked": asdict(checked)}
            write_entry(self._path(version), entry)

    def forget(self, version: Version) -> None:
        try:
            self._path(version).unlink(missing_ok=True)
        except (
            OSError
        ):  # then it is there, and wrong, until the files change: the digests at loading still hold
            return

    def _path(self, version: Version) -> Path:
        about = json.dumps([str(version.folder.resolve()), *self._scope])
        name = hashlib.sha256(about.encode()).hexdigest()[:32]
        return self._folder / f"{name}.json"

    def _about(self, version: Version) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "scope": self._scope,
            "key": version.key,
            "files": [list(entry) for entry in version.state],
        }
