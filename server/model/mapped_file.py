"""A file as memory: arrays over its bytes, without a copy. It knows nothing of what the bytes mean."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelLoadError

# Absent outside Linux and the BSDs; there the system takes clean pages back when it needs them.
_WILL_NEED = getattr(mmap, "MADV_WILLNEED", None)
_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)

if sys.byteorder != "little":  # the formats are little-endian and the arrays are views
    raise ImportError("checkpoints are read on little-endian machines only")


class MappedFile:
    """Read-only. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Raises ModelLoadError if the file cannot be opened or is empty."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{path.name} cannot be read: {error}") from None
        self.size = len(self.map)

    def bytes(self, offset: int, size: int) -> NDArray[np.uint8]:
        """(size,) bytes from offset on, read-only. Their pages are given back when the last array on them is gone."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ModelLoadError(
                f"{self.path.name} is damaged: it ends at byte {self.size}, within a tensor."
            )
        if not size:
            return np.empty(0, np.uint8)
        return np.asarray(_Span(self.map, offset, size))


class _Span:
    """Lets numpy borrow a part of a map, and is the one owner that all arrays on it keep alive."""

    def __init__(self, source: mmap.mmap, offset: int, size: int) -> None:
        self._map = source
        self._first = offset - offset % mmap.PAGESIZE  # of whole pages, as the system wants it
        self._length = offset + size - self._first
        self._view = np.frombuffer(source, np.uint8, size, offset)
        self.__array_interface__ = self._view.__array_interface__
        if _WILL_NEED is not None:
            source.madvise(_WILL_NEED, self._first, self._length)

    def __del__(self) -> None:
        # Pages of neighbours may go with it; whoever still uses them reads them again from the page cache.
        if _DONT_NEED is not None and hasattr(self, "_view"):
            self._map.madvise(_DONT_NEED, self._first, self._length)
