"""Chooses what computes: the native decoder, or torch where that is not compiled."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from server.errors import StartupError
from server.model.admission import Packer
from server.model.loader import BaseModel
from server.model.native_runner import NativeRunner
from server.model.score import ScoringRunner
from server.native.library import Library, LibraryMissingError, NativeError, load_library

log = logging.getLogger("lorachat.model")

TORCH = "torch"
AUTO = "auto"
KERNELS = (AUTO, "avx512", "avx2", "neon", "plain", TORCH)


class ServingRunner(ScoringRunner, Packer, Protocol):
    """A runner that also packs adapters beside its steps, and computes a probe between them."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A runner, and what an operator should know of it.

    kernel: one of KERNELS but auto. weights: bfloat16-exact, float32 or mixed. weight_bytes: that they take.
    """

    runner: ServingRunner
    kernel: str
    weights: str
    weight_bytes: int


class Budget(Protocol):
    def __call__(self, weight_bytes: int) -> int:
        """Bytes for the KV cache beside weights of that size."""
        ...


def make_backend(base: BaseModel, kernel: str, budget: Budget, threads: int) -> Backend:
    """Reads the weights. kernel: one of KERNELS. Raises StartupError."""
    if kernel == TORCH:
        return _torch(base, budget, threads)
    try:
        library = load_library(None if kernel == AUTO else kernel)
    except LibraryMissingError as error:
        if kernel != AUTO:
            raise StartupError(f"The {kernel} kernel cannot be used: {error}.") from None
        log.warning(
            "computing with torch, several times slower and without bit-exact batches: the native decoder is not"
            " available (%s). Install a C++ compiler and run `make native`.",
            error,
        )
        return _torch(base, budget, threads)
    return _native(library, base, budget, threads)


def _native(library: Library, base: BaseModel, budget: Budget, threads: int) -> Backend:
    # What will really be stored is known only when it has been read; a file that has bfloat16 stays so.
    expected = base.checkpoint.num_bytes
    try:
        runner = NativeRunner(library, base, kv_cache_bytes=budget(expected), threads=threads)
    except (NativeError, ValueError) as error:
        raise StartupError(f"The model cannot be set up: {error}.") from None
    stored = runner.weights
    log.info(
        "kernel %s; weights %s: %d matrices as bfloat16, which holds them exactly (%.2f GB), %d as float32 (%.2f GB)%s",
        runner.kernel,
        stored.kind,
        stored.matrices_bf16,
        stored.bytes_bf16 / 1e9,
        stored.matrices_float32,
        stored.bytes_float32 / 1e9,
        f": {stored.exceptions}" if stored.exceptions else "",
    )
    return Backend(runner, runner.kernel, stored.kind, runner.weight_bytes)


def _torch(base: BaseModel, budget: Budget, threads: int) -> Backend:
    try:
        import torch
    except ModuleNotFoundError:
        # As in .venv-ray, which is made without it.
        raise StartupError(
            "Nothing here can compute: the native decoder is not compiled, and torch is not installed. Run `make"
            " native` (it needs a C++ compiler)."
        ) from None

    from server.model.torch_decoder import TorchDecoder
    from server.model.torch_runner import TorchRunner

    torch.set_num_threads(threads)
    weight_bytes = 4 * base.checkpoint.num_values
    try:
        decoder = TorchDecoder(base.config, base.checkpoint, base.cos, base.sin)
        runner = TorchRunner(decoder, budget(weight_bytes))
    except ValueError as error:
        raise StartupError(f"The model cannot be set up: {error}.") from None
    log.info("kernel torch; weights stored as float32 (%.2f GB)", weight_bytes / 1e9)
    return Backend(runner, TORCH, "float32", weight_bytes)
