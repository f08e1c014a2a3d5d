"""The weights digest: one name for the float32 values of a base model, whatever file format they came in.

docs/contracts.md defines it; the server computes the same from its own copy. Tensors are read in blocks of
rows, so a checkpoint far larger than memory can be digested.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trainer.errors import TrainerError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BLOCK_BYTES = 32 * 1024 * 1024  # of float32 values; two blocks are alive at a time
FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}


class WeightsError(TrainerError):
    """The folder holds no complete float checkpoint; the message says what is wrong with it."""


def weights_digest(folder: Path) -> str:
    """`sha256:` and 64 hex digits over every parameter of the causal model in `folder`, in order of name.

    Raises WeightsError where a file, a tensor or the configuration is missing, unreadable, of the
    wrong shape, or not of a float type (a quantised checkpoint has no float values to name).
    """
    shapes, tied = _parameters(folder)
    with ExitStack() as stack, ThreadPoolExecutor(max_workers=1) as hasher:
        checkpoint = _Checkpoint(folder, stack)

        def digest(name: str, shape: tuple[int, ...]) -> bytes:
            return _values_digest(checkpoint.blocks(name, shape), hasher)

        digests: dict[str, bytes] = {}
        for name, shape in shapes.items():
            digests[name] = digest(checkpoint.stored_name(name, tied), shape)
        # transformers unties what the configuration ties if the files store it with other values.
        for name, source in tied.items():
            if checkpoint.has(name) and checkpoint.has(source):
                stored = digest(name, shapes[source])
                if stored != digests[source]:
                    shapes[name] = shapes[source]
                    digests[name] = stored
    total = hashlib.sha256()
    for name in sorted(digests):
        shape_text = "x".join(str(size) for size in shapes[name])
        total.update(name.encode() + b"\0" + shape_text.encode() + b"\0" + digests[name])
    return "sha256:" + total.hexdigest()


def _parameters(folder: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Names and shapes of the model's parameters, and {tied name: the parameter it shares}.

    The model is built without storage: its own `named_parameters()` decides what is a parameter, so
    buffers and tied weights need no list of names here.
    """
    # Imported late: unsloth has to be imported before transformers, and this module may come first.
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} has no config.json: it is not a model folder.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder}/config.json describes no causal model: {error}") from error
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    tied = {
        name: source for name, source in model.all_tied_weights_keys.items() if source in shapes
    }
    return shapes, tied


class _Checkpoint:
    """The tensors of a folder of safetensors files, single or sharded, opened as they are needed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._open: dict[str, Any] = {}
        self._file_of = self._index()

    def has(self, name: str) -> bool:
        return name in self._file_of

    def stored_name(self, name: str, tied: dict[str, str]) -> str:
        """The name that the files keep parameter `name` under: its own, or that of a weight tied to it."""
        if name in self._file_of:
            return name
        for other, source in tied.items():
            if source == name and other in self._file_of:
                return other
        raise WeightsError(f"{self._folder} has no tensor {name}: the checkpoint is incomplete.")

    def blocks(self, name: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
        """The float32 values of one tensor, little-endian and row-major, a block of rows at a time."""
        reader = self._reader(self._file_of[name])
        part = reader.get_slice(name)
        if part.get_dtype() not in FLOAT_TYPES:
            raise WeightsError(
                f"{name} in {self._folder} is stored as {part.get_dtype()}: "
                "a quantised checkpoint has no weights digest; give the float base."
            )
        if tuple(part.get_shape()) != shape:
            raise WeightsError(
                f"{name} in {self._folder} has shape {part.get_shape()}, the configuration says {list(shape)}."
            )
        if not shape:
            yield _float32_bytes(reader.get_tensor(name))
            return
        rows = max(1, BLOCK_BYTES // max(1, 4 * math.prod(shape[1:])))
        for start in range(0, shape[0], rows):
            yield _float32_bytes(part[start : start + rows])

    def _reader(self, file: str) -> Any:
        if file not in self._open:
            try:
                reader = safe_open(self._folder / file, framework="pt")
                self._open[file] = self._stack.enter_context(reader)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{self._folder / file} cannot be read: {error}") from error
        return self._open[file]

    def _index(self) -> dict[str, str]:
        index = self._folder / INDEX_FILE
        if index.is_file():
            try:
                return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise WeightsError(f"{index} is not a safetensors index: {error}") from error
        if not (self._folder / SINGLE_FILE).is_file():
            raise WeightsError(f"{self._folder} has neither {SINGLE_FILE} nor {INDEX_FILE}.")
        return dict.fromkeys(self._reader(SINGLE_FILE).keys(), SINGLE_FILE)


def _float32_bytes(values: torch.Tensor) -> memoryview:
    array = values.to(torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return array.reshape(-1).data.cast("B")


def _values_digest(blocks: Iterator[memoryview], hasher: ThreadPoolExecutor) -> bytes:
    """SHA-256 of the blocks in order; one is hashed in a thread (hashlib lets go of the GIL) as the next is read."""
    digest = hashlib.sha256()
    pending: Future[None] | None = None
    for block in blocks:
        if pending is not None:
            pending.result()
        pending = hasher.submit(digest.update, block)
    if pending is not None:
        pending.result()
    return digest.digest()
