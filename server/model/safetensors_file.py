"""The safetensors format: a length, a JSON table of tensors, and their bytes. It knows no names of any model.

Read here and not by the library, whose numpy interface has no bfloat16 and copies what it reads. Format:
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
# Stored type -> type of the array over its bytes; uint16 holds the bits of bfloat16.
FLOAT_TYPES: Mapping[str, type[np.generic]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
}  # fmt: skip
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
        "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64}  # fmt: skip

Values = NDArray[np.float32] | NDArray[np.uint16]  # uint16 holds the bits of bfloat16


class SafetensorsError(Exception):
    """The bytes are not a whole safetensors file; the message says where."""


class Source(Protocol):
    """Bytes of a file: in memory or mapped."""

    @property
    def size(self) -> int: ...

    def bytes(self, offset: int, size: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class BytesInMemory:
    """A file that was read whole. Fits Source."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def bytes(self, offset: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.data, np.uint8, size, offset)


@dataclass(frozen=True, slots=True)
class BytesInFile:
    """An open file, for its header: what is asked for is read. Fits Source."""

    file: BinaryIO

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def bytes(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Shorter than asked for if the file is cut short meanwhile."""
        self.file.seek(offset)
        return np.frombuffer(self.file.read(size), np.uint8)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the table. offset, size: bytes, from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_table(source: Source) -> dict[str, Entry]:
    """All tensors by name. Raises SafetensorsError unless they lie in the file side by side, without gap or overlap."""
    if source.size < 8:
        raise SafetensorsError("it is shorter than a header")
    length = int(source.bytes(0, 8).view("<u8")[0])
    if length > MAX_HEADER_BYTES:
        raise SafetensorsError(
            f"its header claims {length} bytes, more than any safetensors file has"
        )
    if 8 + length > source.size:
        raise SafetensorsError(f"it ends at byte {source.size}, within its header")
    try:
        table = json.loads(source.bytes(8, length).tobytes())
    except (ValueError, RecursionError):
        raise SafetensorsError("its header is not JSON") from None
    if not isinstance(table, dict):
        raise SafetensorsError("its header is not a table")
    table.pop("__metadata__", None)
    entries = {name: _entry(name, fields, 8 + length) for name, fields in table.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset != end:
            raise SafetensorsError(f"{name} does not begin where the tensor before it ends")
        end += entry.size
    if end != source.size:
        raise SafetensorsError(f"its tensors end at byte {end}, the file at {source.size}")
    return entries


def _entry(name: str, fields: Any, start: int) -> Entry:
    try:
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        numbers = (*shape, begin, end)
    except (TypeError, KeyError, ValueError):
        raise SafetensorsError(f"its header does not describe {name}") from None
    if any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 2**63 for n in numbers):
        raise SafetensorsError(f"its header gives impossible sizes for {name}")
    if dtype not in BITS:
        raise SafetensorsError(f"{name} is stored as {dtype!r}, which is not known")
    if end - begin != math.prod(shape) * BITS[dtype] // 8:
        raise SafetensorsError(
            f"{name} has {end - begin} bytes, which does not fit shape {list(shape)}"
        )
    return Entry(dtype, shape, start + begin, end - begin)


def read_entry(source: Source, entry: Entry) -> Values:
    """The tensor, C-contiguous: float32, or uint16 holding the bits of bfloat16. A view where the file allows it.

    entry.dtype must be one of FLOAT_TYPES.
    """
    values = (
        source.bytes(entry.offset, entry.size).view(FLOAT_TYPES[entry.dtype]).reshape(entry.shape)
    )
    # A header of odd length puts all tensors at addresses that not every processor can load from.
    return to_float(np.require(values, requirements=["C", "A"]))


def to_float(values: NDArray[Any]) -> Values:
    """float16 and float64 become float32; the others are handed through."""
    return values if values.dtype in (np.float32, np.uint16) else values.astype(np.float32)


def bfloat16_to_float32(bits: NDArray[Any]) -> NDArray[np.float32]:
    """The same values: bfloat16 is the upper half of a float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
