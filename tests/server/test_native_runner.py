"""The native decoder under the suite that every runner must pass, to the bit, in every variant this machine can run."""

from __future__ import annotations

import pytest

from server.model.native_runner import NativeRunner, shape_of
from server.native.build import build
from server.native.library import LibraryMissingError, load_library
from server.step import Runner
from tests.server.conformance import Model, RunnerConformance


def native_runner(
    model: Model, kv_bytes: int, variant: str | None = None, threads: int = 2
) -> Runner:
    build()
    try:
        library = load_library(variant)
    except LibraryMissingError:
        pytest.skip(f"this processor does not run the {variant} variant")
    # Heads narrower than a tile are padded to one, so a block takes more than its values.
    num_blocks = kv_bytes // (library.block_size * model.config.cache_bytes_per_token)
    block_bytes = library.block_bytes(shape_of(model.config, len(model.cos)))
    return NativeRunner(library, model, kv_cache_bytes=num_blocks * block_bytes, threads=threads)


class TestNativeRunner(RunnerConformance):
    bit_exact = True

    def build(self, model: Model, kv_bytes: int) -> Runner:
        return native_runner(model, kv_bytes)
