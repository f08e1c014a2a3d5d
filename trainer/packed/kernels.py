"""Liger Kernel's fused normalisation, rotary embedding and gated activation for Llama models, where they can be had.

As separate operations these take a third of a step's time, moving activations in and out of memory.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch


def use_fused_kernels(base: Any) -> str | None:
    """Let a transformers model use them; why it does not, None if it does. Only CUDA has them."""
    if not next(base.parameters()).is_cuda:
        return "there is no CUDA GPU"
    if type(base).__name__ != "LlamaForCausalLM":
        return f"there are none for {type(base).__name__}"
    if find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    from liger_kernel.transformers import apply_liger_kernel_to_llama  # noqa: PLC0415 (CUDA only)

    # The loss is ours: it keeps the logits of all tokens from ever being there, and needs no gradient of the weight.
    apply_liger_kernel_to_llama(
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=base,
    )
    with torch.no_grad():
        try:
            base.model(
                input_ids=torch.zeros(1, 16, dtype=torch.long, device="cuda"), use_cache=False
            )
        # Triton compiles here, which needs a C compiler and a card it knows.
        except Exception as error:
            raise RuntimeError(
                f"liger-kernel's kernels do not run here ({str(error).splitlines()[0]}); uninstall it to train without."
            ) from error
    return None
