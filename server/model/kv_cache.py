"""Where keys and values live: one block of memory per slot. Accounting is the scheduler's."""

from __future__ import annotations

import torch
from torch import Tensor

from server.model.config import DecoderConfig


class SlotCache:
    """Keys and values of one sequence, all layers.

    Allocated at its full capacity without touching the memory: pages become real as tokens arrive.
    """

    def __init__(self, config: DecoderConfig, capacity: int) -> None:
        shape = (config.num_layers, config.num_kv_heads, capacity, config.head_dim)
        self._keys = torch.empty(shape)
        self._values = torch.empty(shape)

    def extend(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (count, kv_heads, head_dim) at positions start…; return all up to there.

        Returned: two (kv_heads, start+count, head_dim) views.
        """
        end = start + keys.shape[0]
        self._keys[layer, :, start:end] = keys.transpose(0, 1)
        self._values[layer, :, start:end] = values.transpose(0, 1)
        return self._keys[layer, :, :end], self._values[layer, :, :end]


class KVCache:
    """Slots by number; made at a sequence's first row, dropped at release."""

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config
        self._slots: dict[int, SlotCache] = {}

    def slot(self, number: int, capacity: int) -> SlotCache:
        cache = self._slots.get(number)
        if cache is None:
            cache = self._slots[number] = SlotCache(self._config, capacity)
        return cache

    def release(self, number: int) -> None:
        self._slots.pop(number, None)

    def __len__(self) -> int:
        return len(self._slots)
