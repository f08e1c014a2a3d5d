"""Packs adapters for the native decoder, beside its steps."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from server.model.adapter import module_sizes
from server.model.config import DecoderConfig
from server.model.lora import AdapterWeights, Ranks
from server.native.library import INPUTS, Library, NativeAdapter, NativeDecoder, Shape

# Matrices are packed in tiles of so many rows; the last one is filled up.
TILE_ROWS = 32


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class PackedAdapter:
    """An adapter version in the library's own layout; what it was read from is not needed any more.

    num_bytes: memory it takes at most. Freed with the object.
    """

    key: str
    digest: str
    num_bytes: int
    native: NativeAdapter


class AdapterPacker:
    """A decoder's threads serve one caller at a time, so packing beside a running step has a decoder of its own.

    That one has no weights and a single thread; adapters fit every decoder of the same shape.
    """

    def __init__(self, library: Library, shape: Shape, config: DecoderConfig) -> None:
        self._sizes = module_sizes(config)
        self._layers = config.num_layers
        self._decoder = NativeDecoder(library, shape, threads=1, num_blocks=1)
        self._one_at_a_time = threading.Lock()

    def adapter_bytes(self, ranks: Ranks) -> int:
        """Memory that such an adapter takes once it is packed, at most: values that bfloat16 holds take half."""
        total = 0
        for layer in range(self._layers):
            for modules in INPUTS:
                stacked = sum(ranks.get((layer, module), 0) for module in modules)
                total += _tiled(stacked) * self._sizes[modules[0]][0]
                for module in modules:
                    total += _tiled(self._sizes[module][1]) * ranks.get((layer, module), 0)
        return 4 * total

    def pack(self, adapter: AdapterWeights) -> PackedAdapter:
        """May be called from any thread, also while a step runs."""
        with self._one_at_a_time:
            native = self._decoder.new_adapter()
            for layer in range(self._layers):
                for number, modules in enumerate(INPUTS):
                    pairs = [
                        (m, p.a, p.b, p.scaling)
                        for m in modules
                        if (p := adapter.pairs.get((layer, m)))
                    ]
                    if pairs:
                        native.set_input(layer, number, pairs)
        return PackedAdapter(adapter.key, adapter.digest, self.adapter_bytes(adapter.ranks), native)


def _tiled(rows: int) -> int:
    return -(-rows // TILE_ROWS) * TILE_ROWS
