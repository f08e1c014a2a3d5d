"""Shows unsloth the variable-length attention of torch 2.11. Imports nothing of what unsloth patches."""

from __future__ import annotations

from typing import Any


def let_unsloth_see_varlen() -> None:
    """unsloth uses torch's variable-length attention where it has `enable_gqa`, which torch 2.11 does not name.

    That version handles grouped queries all the same. Without this unsloth runs one attention call per row there.
    """
    from inspect import signature

    from torch.nn.attention import varlen

    original = varlen.varlen_attn
    if "enable_gqa" in signature(original).parameters:
        return

    def varlen_attn(
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,  # noqa: ARG001 (always on there)
        **rest: Any,
    ) -> Any:
        return original(
            query,
            key,
            value,
            cu_seq_q,
            cu_seq_k,
            max_q,
            max_k,
            scale=scale,
            window_size=window_size,
            **rest,
        )

    varlen.varlen_attn = varlen_attn
