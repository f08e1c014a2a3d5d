"""Cross-entropy over a frozen output layer without ever holding all logits.

The gradient of the hidden states is computed with the loss, chunk by chunk (the fused linear cross-entropy of Liger
Kernel, arXiv:2410.10989, for weights that need no gradient), so the logits of one chunk are all that is alive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.template import IGNORED

CHUNK_TOKENS = 1024  # 128,256 logits in float32: half a gigabyte


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            wanted = targets[part]
            counts = (wanted != IGNORED).unsqueeze(1)
            index = wanted.clamp(min=0).unsqueeze(1)
            logits = hidden[part] @ weight.t()
            log_p = torch.log_softmax(logits, dim=1, dtype=torch.float32)
            del logits
            total -= (log_p.gather(1, index) * counts).sum()
            p = log_p.exp_()
            p.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
            gradient[part] = (p.to(weight.dtype) @ weight) * counts
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies (nats, float32) of softmax(hidden @ weight.T) at all targets that are not IGNORED.

    hidden: (tokens, width); weight: (vocabulary, width), frozen; targets: (tokens,). The gradient reaches hidden only.
    """
    loss: Tensor = _HeadLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]  # torch's own
    return loss
