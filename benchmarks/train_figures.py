"""Arithmetic of a training step: floating-point operations per token, and the card's measured ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

FORMULA = (
    "model FLOPs per token = 4 (linear + head) + 6 LoRA + 3 attention: frozen weights take 2 FLOPs per weight forward "
    "and 2 backward (no weight gradient), trained ones 6; attention = 2 heads head_dim layers x (sum of squared row "
    "lengths / tokens) forward (causal), 3 times that in all. Hardware FLOPs add the recomputation of checkpointing: "
    "6 linear + 4 head + 8 LoRA + 4 attention. Utilisation = that x real tokens/s over the measured matrix product."
)


@dataclass(frozen=True, slots=True)
class TokenFlops:
    """Floating-point operations per real token."""

    model: float
    hardware: float


def token_flops(
    config: Any, lora_parameters: int, lengths: Sequence[int], *, recompute: bool
) -> TokenFlops:
    """By FORMULA. config: a Llama configuration; lengths: of the rows, in tokens."""
    heads, dim = config.num_attention_heads, config.head_dim
    width, layers = config.hidden_size, config.num_hidden_layers
    kv = config.num_key_value_heads * dim
    linear = layers * (
        2 * width * heads * dim + 2 * width * kv + 3 * width * config.intermediate_size
    )
    head = width * config.vocab_size
    attention = 2 * heads * dim * layers * sum(length * length for length in lengths) / sum(lengths)
    model = 4 * (linear + head) + 6 * lora_parameters + 3 * attention
    if not recompute:
        return TokenFlops(model, model)
    return TokenFlops(model, 6 * linear + 4 * head + 8 * lora_parameters + 4 * attention)


def matrix_ceiling(size: int = 8192) -> float:
    """FLOP/s of a bfloat16 product of random square matrices on the GPU, the median of 20; nought without one."""
    if not torch.cuda.is_available():
        return 0.0
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for index in range(23):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        left @ right
        end.record()
        torch.cuda.synchronize()
        if index >= 3:
            seconds.append(start.elapsed_time(end) / 1e3)
    return float(2 * size**3 / sorted(seconds)[len(seconds) // 2])
