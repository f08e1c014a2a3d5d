"""Causal attention within rows that lie end to end: the fast kernel where there is one, an exact mask elsewhere.

torch only, so that it can be tried before a backend is chosen.
"""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.machine import Machine

KERNEL_CAPABILITY = (8, 0)  # FlashAttention-2


def kernel_problem(machine: Machine) -> str | None:
    """Why the fast variable-length kernel cannot be used on `machine`; None if it can: tried, not assumed."""
    if machine.capability is None:
        return "there is no CUDA GPU"
    if machine.capability < KERNEL_CAPABILITY:
        return f"{machine.name} has compute capability {machine.capability[0]}.{machine.capability[1]}, below 8.0"
    try:
        error = _largest_error()
    # A torch without the module, without the kernel for this card, or with another signature.
    except (ImportError, RuntimeError, TypeError, AttributeError) as reason:
        return f"this torch's variable-length attention does not run: {str(reason).splitlines()[0]}"
    if not error < 0.05:
        return f"this torch's variable-length attention is wrong here (error {error:.3g})"
    return None


@lru_cache(maxsize=1)
def _largest_error() -> float:
    """The kernel against the mask on random grouped-query inputs, forward and backward."""
    generator = torch.Generator("cuda").manual_seed(0)
    boundaries = torch.tensor([0, 5, 130, 130, 160], dtype=torch.int32, device="cuda")
    shapes = ((160, 4, 64), (160, 2, 64), (160, 2, 64))
    tensors = [
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for shape in shapes
    ]
    results = []
    for function in (kernel, masked):
        inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        query, key, value = inputs
        out = function(query, key, value, boundaries, 130, 0.125)
        torch.autograd.backward(out.float().square().sum())
        results.append([out, *(tensor.grad for tensor in inputs)])
    return max(
        float((fast - exact).float().norm() / exact.float().norm())
        for fast, exact in zip(*results, strict=True)
    )


@lru_cache(maxsize=1)
def _kernel_arguments() -> dict[str, Any]:
    """How the installed torch spells "causal" and "grouped queries": the parameters changed between versions."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (not in every torch)

    known = signature(varlen_attn).parameters
    arguments: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    if "enable_gqa" in known:
        arguments["enable_gqa"] = True
    return arguments


def kernel(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
) -> Tensor:
    """query (tokens, heads, dim), key and value (tokens, kv heads, dim) -> (tokens, heads, dim)."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (not in every torch)

    default = query.shape[-1] ** -0.5
    if scale != default:  # the oldest signature has no scale of its own
        query = query * (scale / default)
    out = varlen_attn(
        query, key, value, boundaries, boundaries, longest, longest, **_kernel_arguments()
    )
    assert isinstance(out, Tensor)  # more than that only if asked for
    return out


def masked(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float
) -> Tensor:
    """The same by a mask: memory and time grow with the square of the tokens."""
    del longest
    places = torch.arange(query.shape[0], device=query.device)
    row = torch.searchsorted(boundaries[1:].contiguous(), places.to(torch.int32), right=True)
    mask = (row[:, None] == row[None, :]) & (places[:, None] >= places[None, :])
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return out.squeeze(0).transpose(0, 1)
