"""The attention of rows that lie end to end, registered with transformers under NAME.

A model uses it inside `packed_attention` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from trainer.varlen import kernel, masked

NAME = "lorachat_packed"


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 (the interface's; boundaries say it all)
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, tokens, dim) in, (1, tokens, heads, dim) out."""
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    scale = scaling if scaling is not None else module.head_dim**-0.5
    # float32 has no such kernel on any card.
    fast = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = kernel if fast else masked
    return attend(q, k, v, cu_seq_lens_q, max_length_q, scale).unsqueeze(0), None


# No mask function goes with it: transformers then builds no mask, which would cost a wait for the GPU.
AttentionInterface.register(NAME, _attend)


@contextmanager
def packed_attention(config: Any) -> Iterator[None]:
    """Switch a model (its configuration) to this attention; generation and evaluation keep their own."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
