"""Files that survive a crash: written, flushed to disk, readable by other users whatever the umask.

It knows nothing about adapters.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

FILE_MODE = 0o644
FOLDER_MODE = 0o755
COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Written:
    """What now lies on disk."""

    sha256: str  # 64 hex digits
    bytes: int


def copy_file(source: Path, target: Path) -> Written:
    """Copy the content of `source` to the new file `target`, flushed. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(COPY_BYTES):
            writer.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        _settle(writer)
    return Written(digest.hexdigest(), size)


def write_text(target: Path, text: str) -> Written:
    """Write the new file `target` as UTF-8, flushed. Raises OSError."""
    content = text.encode()
    with target.open("xb") as writer:
        writer.write(content)
        _settle(writer)
    return Written(hashlib.sha256(content).hexdigest(), len(content))


def _settle(writer: BinaryIO) -> None:
    writer.flush()
    os.fchmod(writer.fileno(), FILE_MODE)
    os.fsync(writer.fileno())


def make_folder(folder: Path) -> None:
    """Make `folder`, and those above it that are missing, readable by all and known to disk. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    # Another process may have made it since; then its permissions are that one's business.
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(FOLDER_MODE)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` (new, renamed, removed) survive a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point_link(link: Path, target: str, temporary_prefix: str) -> None:
    """Make `link` a symbolic link to `target` in one step: readers see the old link or the new. Raises OSError."""
    temporary = link.with_name(f"{temporary_prefix}{secrets.token_hex(6)}")
    temporary.symlink_to(target)
    try:
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(link.parent)
