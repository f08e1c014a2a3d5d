"""One run at a time in an output folder: two jobs on the same shared folder would tear each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import ConfigError
from trainer.processes import is_main


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it goes with the process, however that ends. Raises ConfigError if another holds it."""
    if not is_main():
        yield
        return
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is training into {folder}; wait for it, or choose another --output."
            ) from None
        except OSError:
            pass  # this file system has no locks
        yield
    finally:
        os.close(descriptor)
