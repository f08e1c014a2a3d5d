"""Checkpoints that are complete or not there: sealed with a list of their files' digests, written last.

The training library writes a checkpoint's files straight into its folder, and takes the highest number for the newest
whole one. Here a folder without a seal, or with a file that is not as sealed, counts as nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from trainer.durable import flush_folder, write_text

SEAL = "sealed.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(checkpoint: Path) -> None:
    """Flush all files of a checkpoint to disk and write the seal. Raises OSError."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != SEAL:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            digests[path.relative_to(checkpoint).as_posix()] = _digest(path)
    flush_folder(checkpoint)
    (checkpoint / SEAL).unlink(missing_ok=True)  # an earlier attempt at the same step
    write_text(checkpoint / SEAL, json.dumps({"files": digests}, indent=1) + "\n")
    flush_folder(checkpoint)
    flush_folder(checkpoint.parent)


def newest_sealed(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder` that is whole; None if there is none."""
    for _, path in sorted(_numbered(folder), reverse=True):
        if _is_whole(path):
            return path
    return None


def step_of(checkpoint: Path) -> int:
    """The number of steps done at a checkpoint."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def remove_broken(folder: Path) -> list[Path]:
    """Remove the checkpoints that are not whole; which they were. Raises OSError."""
    broken = [path for _, path in _numbered(folder) if not _is_whole(path)]
    for path in broken:
        shutil.rmtree(path)
    return broken


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]


def _is_whole(checkpoint: Path) -> bool:
    try:
        files: dict[str, str] = json.loads((checkpoint / SEAL).read_bytes())["files"]
        return all(_digest(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
