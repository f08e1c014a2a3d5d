"""LoRA (arXiv:2106.09685) beside a frozen base: y += scaling · (x Aᵀ) Bᵀ. The base is never merged or copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class LoraPair:
    """a: (rank, in), b: (out, rank), float32. scaling: alpha/rank, or alpha/√rank with rsLoRA."""

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One adapter version's tensors, by (layer, module). Modules it does not train are absent."""

    key: str
    pairs: Mapping[tuple[int, str], LoraPair]

    @property
    def num_bytes(self) -> int:
        return sum(p.a.nbytes + p.b.nbytes for p in self.pairs.values())


def apply_lora(weights: AdapterWeights, layer: int, module: str, x: Tensor, y: Tensor) -> None:
    """Add the adapter's part to y (rows, out) in place. x: (rows, in)."""
    pair = weights.pairs.get((layer, module))
    if pair is not None:
        y += F.linear(F.linear(x, pair.a), pair.b) * pair.scaling
