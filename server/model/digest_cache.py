"""Remembers the weights digest between starts, so that a base is hashed once and not at every start.

The rule: a digest holds for as long as the checkpoint's files (configuration included) have the same resolved paths,
sizes and modification times. A file that changed within the last seconds is hashed but not remembered: it could change
again without its time showing it. An entry that cannot be read, or is not what it should be, counts as absent; a
cache that cannot be written costs the next start its time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.model.checkpoint import Checkpoint
from server.model.digest import weights_digest

log = logging.getLogger("lorachat.model")

FORMAT = "lorachat-digest/1"
SETTLED_SECONDS = 2.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def cache_folder(environment: Mapping[str, str]) -> Path:
    """LORACHAT_CACHE, else lorachat in XDG_CACHE_HOME, else in ~/.cache; for a user without a home, nowhere."""
    if own := environment.get("LORACHAT_CACHE"):
        return Path(own)
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared) / "lorachat"
    try:
        return Path.home() / ".cache" / "lorachat"
    except RuntimeError:  # a container's user may be a number only
        return Path(os.devnull)


def cached_weights_digest(checkpoint: Checkpoint, threads: int, folder: Path) -> str:
    """The digest, from folder/digests if it is known there, else computed and remembered."""
    try:
        state = _state(checkpoint.files)
    except OSError:
        return weights_digest(checkpoint, threads)
    name = hashlib.sha256(json.dumps([path for path, *_ in state]).encode()).hexdigest()[:32]
    path = folder / "digests" / f"{name}.json"
    known = _read(path, state)
    if known is not None:
        return known
    digest = weights_digest(checkpoint, threads)
    newest = max(time_ns for _, _, time_ns in state)
    if time.time() - newest / 1e9 > SETTLED_SECONDS:
        write_entry(path, {"format": FORMAT, "files": state, "digest": digest})
    return digest


def _state(files: tuple[Path, ...]) -> list[list[Any]]:
    """Path, bytes and modification time of each file, as JSON gives them back."""
    state = []
    for file in files:
        status = file.stat()
        state.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    return state


def _read(path: Path, state: list[list[Any]]) -> str | None:
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("format") != FORMAT or entry.get("files") != state:
        return None
    digest = entry.get("digest")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def write_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """What cannot be written is not remembered. Renamed into place, so that two starting servers never read half."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(entry) + "\n", "utf-8")
        partial.replace(path)
    except OSError as error:
        log.info("what was checked is not remembered for the next start: %s", error)
