"""The hidden folder a version is written in, and the clearing away of those that dead jobs left behind."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.durable import FOLDER_MODE

STAGING_PREFIX = ".tmp-"  # readers skip every name that begins with a dot
STALE_SECONDS = 24 * 60 * 60.0


@contextmanager
def staging_folder(home: Path) -> Iterator[Path]:
    """A new folder in `home`, locked as long as this process lives; removed at the end unless it was renamed.

    Raises OSError.
    """
    folder = home / f"{STAGING_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        folder.chmod(FOLDER_MODE)
        # Without locks on this file system remove_stale gets none either, and removes nothing.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(home: Path) -> None:
    """Remove `.tmp-…` in an adapter's folder that nobody has touched for a day and no process holds locked.

    Nothing else is ever removed. A process that is killed loses its lock, also one in another container.
    """
    now = time.time()
    for path in home.glob(f"{STAGING_PREFIX}*"):
        # Another publish may be clearing the same one, and a leftover that stays does no harm.
        with suppress(OSError):
            if now - path.lstat().st_mtime < STALE_SECONDS:
                continue
            if path.is_symlink():
                path.unlink()
            elif path.is_dir():
                _remove_unlocked(path)


def _remove_unlocked(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
