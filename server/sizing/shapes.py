"""Shapes of well-known models, so that one can be planned for before it is downloaded.

The values are those of the checkpoints' own config.json, in its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.model.config import DecoderConfig, read_config


def _shape(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, positions: int,
    *, head_dim: int | None = None, tied: bool = False, family: str = "llama",
) -> Mapping[str, Any]:  # fmt: skip
    return {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": _shape(576, 1536, 30, 9, 3, 49152, 8192, tied=True),
    "smollm2-360m": _shape(960, 2560, 32, 15, 5, 49152, 8192, tied=True),
    "smollm2-1.7b": _shape(2048, 8192, 24, 32, 32, 49152, 8192, tied=True),
    "llama-3.2-1b": _shape(2048, 8192, 16, 32, 8, 128256, 131072, tied=True),
    "llama-3.2-3b": _shape(3072, 8192, 28, 24, 8, 128256, 131072, tied=True),
    "llama-3.1-8b": _shape(4096, 14336, 32, 32, 8, 128256, 131072),
    "mistral-7b-v0.3": {
        **_shape(4096, 14336, 32, 32, 8, 32768, 32768, family="mistral"),
        "sliding_window": None,
    },
    "qwen2.5-0.5b": _shape(896, 4864, 24, 14, 2, 151936, 32768, tied=True, family="qwen2"),
    "qwen2.5-1.5b": _shape(1536, 8960, 28, 12, 2, 151936, 32768, tied=True, family="qwen2"),
    "qwen2.5-7b": _shape(3584, 18944, 28, 28, 4, 152064, 32768, family="qwen2"),
    "qwen3-0.6b": _shape(
        1024, 3072, 28, 16, 8, 151936, 40960, head_dim=128, tied=True, family="qwen3"
    ),
    "qwen3-4b": _shape(
        2560, 9728, 36, 32, 8, 151936, 40960, head_dim=128, tied=True, family="qwen3"
    ),
}


def shape_like(name: str) -> DecoderConfig:
    """Raises KeyError for a name that is not in SHAPES."""
    return read_config(SHAPES[name])
