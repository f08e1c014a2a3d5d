"""Whether an error means that a disk is full, whichever library met it, and in whose words."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
