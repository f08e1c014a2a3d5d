"""LoRA (arXiv:2106.09685) beside a frozen base: y += scaling · (x Aᵀ) Bᵀ. The base is never merged or copied.

It holds what was read; how it is laid out for computing is the runner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# (layer, module) -> rank, of every module that an adapter changes.
Ranks = Mapping[tuple[int, str], int]


@dataclass(frozen=True, slots=True)
class LoraPair:
    """a: (rank, in), b: (out, rank), float32 and C-contiguous. scaling: alpha/rank, or alpha/√rank with rsLoRA."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scaling: float


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class AdapterWeights:
    """One adapter version's tensors, by (layer, module). Modules it does not train are absent.

    Equal only to itself and weakly referenceable, so that a runner can keep its own copy for as long as this lives.

    digest: 64 hex digits over scalings and values: the same for equal adapters, whatever they are called and
        whatever type their file stores.
    """

    key: str
    digest: str
    pairs: Mapping[tuple[int, str], LoraPair]

    @property
    def num_bytes(self) -> int:
        return sum(p.a.nbytes + p.b.nbytes for p in self.pairs.values())

    @property
    def ranks(self) -> Ranks:
        return {place: pair.a.shape[0] for place, pair in self.pairs.items()}
