"""The GGUF format: metadata, a table of tensors, and their bytes, quantised or not. It knows no names of any model.

The header is read here and not by the `gguf` package, whose reader makes several Python objects for each word of
the vocabulary (seconds and hundreds of megabytes); the package's tables and its de-quantisation are used.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelLoadError
from server.model.mapped_file import MappedFile
from server.model.safetensors_file import Values, to_float

VERSIONS = (2, 3)
PIECE = 2**16  # values de-quantised at a time: they and what is between fit a core's cache
# Value type -> struct code.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_FLOATS: Mapping[str, type[np.generic]] = {
    "F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """dtype: ggml's name of the type. offset: bytes from the beginning of the file."""

    name: str
    shape: tuple[int, ...]  # rows first, as numpy and torch have it
    dtype: str
    offset: int
    size: int


class GGUFHeader:
    """metadata: the file's key-value pairs. tensors: by the file's own names."""

    def __init__(self, file: MappedFile) -> None:
        """Raises ModelLoadError unless the whole header is there and every tensor lies within the file."""
        cursor = _Cursor(file)
        if cursor.take(4) != b"GGUF":
            raise ModelLoadError(f"{file.path.name} is not a GGUF file.")
        version, num_tensors, num_pairs = cursor.unpack("IQQ")
        if version not in VERSIONS:
            raise ModelLoadError(f"{file.path.name} is GGUF version {version}; 2 and 3 are read.")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_pairs):
            key = cursor.string()
            self.metadata[key] = cursor.value(*cursor.unpack("I"))
        entries = [cursor.tensor() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment < 2**20:
            raise ModelLoadError(f"{file.path.name} has general.alignment={alignment!r}.")
        data = -(-cursor.position // alignment) * alignment
        self.tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in entries:
            if name in self.tensors:
                raise ModelLoadError(f"{file.path.name} has two tensors named {name}.")
            self.tensors[name] = _tensor(file, name, shape, kind, data + offset)


def _tensor(
    file: MappedFile, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> GGUFTensor:
    from gguf import constants  # noqa: PLC0415 (only for GGUF files)

    try:
        dtype = constants.GGMLQuantizationType(kind)
        block, block_bytes = constants.GGML_QUANT_SIZES[dtype]
    except (ValueError, KeyError):
        raise ModelLoadError(
            f"{name} has a type ({kind}) that the gguf package does not know."
        ) from None
    if not shape or shape[-1] % block:
        raise ModelLoadError(f"{name} has shape {shape}, which {dtype.name} cannot store.")
    size = math.prod(shape) // block * block_bytes
    if offset + size > file.size:
        raise ModelLoadError(
            f"{file.path.name} is damaged: it ends at byte {file.size}, within {name}."
        )
    return GGUFTensor(name, shape, dtype.name, offset, size)


def read_tensor(file: MappedFile, tensor: GGUFTensor) -> Values:
    """The tensor, C-contiguous: float32, or uint16 holding the bits of bfloat16."""
    data = file.bytes(tensor.offset, tensor.size)
    if tensor.dtype in _FLOATS:
        values = data.view(_FLOATS[tensor.dtype]).reshape(tensor.shape)
        return to_float(np.require(values, requirements=["C", "A"]))
    return _dequantize(data, tensor)


def _dequantize(data: NDArray[np.uint8], tensor: GGUFTensor) -> NDArray[np.float32]:
    from gguf import constants, quants  # noqa: PLC0415

    kind = constants.GGMLQuantizationType[tensor.dtype]
    block, block_bytes = constants.GGML_QUANT_SIZES[kind]
    values = np.empty(math.prod(tensor.shape), np.float32)
    # Blocks know nothing of rows. In pieces, and each as one row: the library would work through 16 rows at a time,
    # however short, and hold all their results beside the whole.
    step = PIECE // block
    try:
        for first in range(0, values.size // block, step):
            piece = data[first * block_bytes : (first + step) * block_bytes]
            values[first * block : (first + step) * block] = quants.dequantize(piece[None], kind)[0]
    except NotImplementedError:
        raise ModelLoadError(
            f"{tensor.name} is stored as {tensor.dtype}, which the gguf package cannot read."
        ) from None
    return values.reshape(tensor.shape)


class _Cursor:
    """Walks through the header, never beyond the file."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._view = memoryview(file.map)
        self.position = 0

    def take(self, size: int) -> bytes:
        if self.position + size > self._file.size:
            raise ModelLoadError(
                f"{self._file.path.name} is damaged: it ends at byte {self._file.size}, within its header."
            )
        start, self.position = self.position, self.position + size
        return bytes(self._view[start : self.position])

    def unpack(self, codes: str) -> tuple[Any, ...]:
        layout = f"<{codes}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.unpack("Q")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ModelLoadError(
                f"{self._file.path.name} is damaged: its metadata has a value of type {kind}."
            )
        item, count = self.unpack("IQ")
        if item == _ARRAY:
            # No model has any, and arrays in arrays without end would use the stack up.
            raise ModelLoadError(
                f"{self._file.path.name} has an array of arrays in its metadata, which is not read."
            )
        if item in _SCALARS:
            # Not one format string for all: a damaged count would make a huge one.
            size = struct.calcsize(f"<{_SCALARS[item]}")
            return [
                value
                for (value,) in struct.iter_unpack(f"<{_SCALARS[item]}", self.take(count * size))
            ]
        return [self.value(item) for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (dimensions,) = self.unpack("I")
        if dimensions > 4:
            raise ModelLoadError(
                f"{self._file.path.name} is damaged: {name} has {dimensions} dimensions."
            )
        sizes = self.unpack(f"{dimensions}Q")
        kind, offset = self.unpack("IQ")
        return name, tuple(reversed(sizes)), kind, offset
