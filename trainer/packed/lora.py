"""LoRA beside a frozen linear layer as one autograd step: y = x Wᵀ + s (x Aᵀ) Bᵀ  (arXiv:2106.09685).

PEFT's own layer does the same in more, smaller steps: it takes the input to float32 and back and keeps more of it for
the backward pass. Here the frozen weight is de-quantised when it is needed and never kept, and the products are added
in place. In training only: generation and evaluation use PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def dense(weight: Tensor) -> Tensor:
    """The (out, in) matrix of a frozen weight, de-quantised if bitsandbytes holds it in 4 bits."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 (CUDA only)

    matrix: Tensor = dequantize_4bit(weight.data, state)
    return matrix


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        """x (tokens, in), weight (out, in) frozen, down A (r, in), up B (out, r)."""
        a, b = down.to(x.dtype), up.to(x.dtype)
        inner = x @ a.t()
        y = x @ dense(weight).to(x.dtype).t()
        y.addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(x, a, b, inner)
        ctx.weight, ctx.scale, ctx.kinds = weight, scale, (down.dtype, up.dtype)
        return y

    @staticmethod
    def backward(
        ctx: Any, *outer: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        x, a, b, inner = ctx.saved_tensors
        (dy,) = outer
        d_inner = (dy @ b) * ctx.scale
        d_down = (d_inner.t() @ x).to(ctx.kinds[0]) if ctx.needs_input_grad[2] else None
        d_up = ((dy.t() @ inner) * ctx.scale).to(ctx.kinds[1]) if ctx.needs_input_grad[3] else None
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ dense(ctx.weight).to(x.dtype)
            dx.addmm_(d_inner, a)
        return dx, None, d_down, d_up, None


def lora_linear(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x (..., in) -> (..., out); the gradient reaches x, down (r, in) and up (out, r), never the weight."""
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = _LoraLinear.apply(flat, weight, down, up, scale)  # type: ignore[no-untyped-call]  # torch's own
    return y.view(*x.shape[:-1], y.shape[-1])


def use_fused_lora(model: nn.Module) -> int:
    """Let every plain LoRA layer of a PEFT model train through `lora_linear`; how many do.

    A layer with dropout, a bias, a variant such as DoRA, or several adapters keeps PEFT's way.
    """
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 (seconds to import)

    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module) and _is_plain(module):
            module.forward = MethodType(_forward(type(module).forward), module)
            fused += 1
    return fused


def _is_plain(layer: Any) -> bool:
    names = layer.active_adapters
    base = layer.get_base_layer()
    return (
        len(names) == 1
        and list(layer.lora_A) == list(names)
        and getattr(base, "bias", None) is None
        and not layer.lora_variant
        and isinstance(layer.lora_dropout[names[0]], nn.Identity)
        and layer.lora_B[names[0]].bias is None
    )


def _forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not (self.training and torch.is_grad_enabled()) or self.disable_adapters or self.merged:
            return original(self, x, *args, **kwargs)
        name = self.active_adapters[0]
        weight = self.get_base_layer().weight
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return lora_linear(x, weight, down, up, self.scaling[name])

    return forward
