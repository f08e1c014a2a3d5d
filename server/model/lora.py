"""LoRA weights (arXiv:2106.09685) as they lie beside a frozen base: y += scaling · (x Aᵀ) Bᵀ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """a: (rank, in), b: (out, rank), float32. scaling: alpha/rank, or alpha/√rank with rsLoRA."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scaling: float


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AdapterWeights:
    """One adapter version's arrays, by (layer, module). Modules it does not train are absent.

    Compared by identity, so that a runner can keep what it made of one for as long as it lives.
    """

    key: str
    digest: str
    pairs: Mapping[tuple[int, str], LoraPair]

    @property
    def num_bytes(self) -> int:
        return sum(p.a.nbytes + p.b.nbytes for p in self.pairs.values())
