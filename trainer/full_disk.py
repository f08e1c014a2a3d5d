"""Whether an error means that a disk is full, whichever library met it, and what a run then says.

It knows nothing about what was being written.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.checkpoints import newest_sealed, remove_broken, step_of
from trainer.errors import DiskFull
from trainer.processes import is_main

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# safetensors and torch write outside Python: their errors carry no number, torch's not even the reason.
_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|os error (28|122)\b|PytorchStreamWriter failed|file write failed"
)


def is_full_disk(error: BaseException) -> bool:
    """Looks at what led to the error, too."""
    return any(
        (isinstance(one, OSError) and one.errno in FULL) or bool(_WORDS.search(str(one)))
        for one in _chain(error)
    )


def disk_full(output: Path) -> DiskFull:
    """The error for a run in `output`. What was half written goes, so that it takes no room; what is complete stays."""
    checkpoints = output / "checkpoints"
    if is_main():
        with suppress(OSError):
            remove_broken(checkpoints)
    newest = newest_sealed(checkpoints)
    kept = "No checkpoint was complete yet."
    if newest is not None:
        kept = f"The checkpoint of step {step_of(newest)} is whole, and the run goes on from it."
    return DiskFull(
        f"The disk of {output} (or of the folder for temporary files) is full. Free some space and start the same "
        f"command again. {kept}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
