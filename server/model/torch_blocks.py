"""The memory of the KV blocks in torch. Who uses which block is the engine's to decide; nothing here keeps count."""

from __future__ import annotations

import torch
from torch import Tensor

from server.model.config import DecoderConfig
from server.step import BlockCopy


class BlockPool:
    """num_blocks blocks of block_size positions, float32, within num_bytes. Raises ValueError if that is not one.

    num_spare: so many more, beyond num_bytes and behind the others.
    One block lies together, all layers of it. The memory is not touched here: pages become real as tokens arrive.
    """

    def __init__(
        self, config: DecoderConfig, num_bytes: int, block_size: int, num_spare: int = 0
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_bytes // (block_size * config.cache_bytes_per_token)
        if self.num_blocks < 1:
            raise ValueError(
                f"{num_bytes} bytes are less than one KV block of {block_size} positions,"
                f" which needs {block_size * config.cache_bytes_per_token}."
            )
        shape = (config.num_layers, 2, block_size, config.num_kv_heads, config.head_dim)
        self._memory = torch.empty(self.num_blocks + num_spare, *shape, dtype=torch.float32)

    def copy(self, copies: tuple[BlockCopy, ...]) -> None:
        for copy in copies:
            self._memory[copy.target] = self._memory[copy.source]

    def write(
        self, layer: int, blocks: Tensor, offsets: Tensor, keys: Tensor, values: Tensor
    ) -> None:
        """blocks, offsets: (tokens,) int64, where each token goes; keys, values: (tokens, kv_heads, head_dim)."""
        self._memory[blocks, layer, 0, offsets] = keys
        self._memory[blocks, layer, 1, offsets] = values

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first length positions of a sequence, (length, kv_heads, head_dim) each.

        blocks: (blocks of the sequence up to there,) int64.
        """
        keys, values = self._memory[blocks, layer].unbind(1)
        return keys.flatten(0, 1)[:length], values.flatten(0, 1)[:length]
