"""The shape of a decoder, read from the checkpoint's own configuration. What would be computed wrongly is refused.

The configuration is the dict of a config.json (or one with the same words, made from GGUF metadata).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import ModelLoadError

# model_type -> what its configuration class in transformers assumes where the file is silent.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}  # fmt: skip
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Values under which the network is the one that is computed here.
REQUIRED = (
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("use_sliding_window", False),
)
# Every layer has its list of tensors, so a damaged count must not make one of two billion.
MAX_LAYERS = 1024
QKV_BIAS = frozenset({"qwen2"})
QK_NORM = frozenset({"qwen3"})
SLIDING_WINDOW = frozenset({"mistral"})


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the network. max_positions: the longest context that is computed as in training.

    qkv_bias: q, k and v have a bias. o_bias: o has one (in none of the families served). qk_norm: an RMS norm per
    head on q and k, before the rotation. tied: the embedding is the output layer too.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_positions: int
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    tied: bool = False

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def cache_bytes_per_token(self) -> int:
        """Float32 keys and values of all layers."""
        return 2 * 4 * self.num_layers * self.num_kv_heads * self.head_dim


def read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    """Raises ModelLoadError for what this server does not compute, or if a size is missing or impossible."""
    family = settings.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ModelLoadError(
            f"models of type {family!r} are not served; this server computes: {', '.join(sorted(FAMILIES))}."
        )
    architectures = settings.get("architectures") or [ARCHITECTURES[family]]
    if ARCHITECTURES[family] not in architectures:
        raise ModelLoadError(
            f"{', '.join(map(str, architectures))} is not a chat model; {ARCHITECTURES[family]} is."
        )
    if settings.get("quantization_config") is not None:
        raise ModelLoadError("it is quantised; name the float checkpoint that it was made from.")
    for name, expected in REQUIRED:
        if (value := settings.get(name)) not in (None, expected):
            raise ModelLoadError(f"{name}={value!r} is not served, only {expected!r}.")
    values = {**FAMILIES[family], **settings}
    heads = _size(values, "num_attention_heads")
    hidden = _size(values, "hidden_size")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None:
        values["head_dim"] = hidden // heads
    config = DecoderConfig(
        num_layers=_size(values, "num_hidden_layers", most=MAX_LAYERS),
        hidden_size=hidden,
        intermediate_size=_size(values, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_size(values, "num_key_value_heads"),
        head_dim=_size(values, "head_dim"),
        vocab_size=_size(values, "vocab_size"),
        rms_norm_eps=_epsilon(values),
        max_positions=_positions(family, values),
        qkv_bias=family in QKV_BIAS,
        qk_norm=family in QK_NORM,
        tied=bool(values.get("tie_word_embeddings", False)),
    )
    if heads % config.num_kv_heads:
        raise ModelLoadError(f"{heads} heads cannot share {config.num_kv_heads} key-value heads.")
    if config.head_dim % 2:
        raise ModelLoadError(f"head_dim={config.head_dim} is odd, so it cannot be rotated.")
    return config


def _positions(family: str, values: Mapping[str, Any]) -> int:
    """Within its sliding window a model attends to everything, so up to there it is computed exactly."""
    positions = _size(values, "max_position_embeddings")
    window = values.get("sliding_window")
    if family in SLIDING_WINDOW and window is not None:
        return min(positions, _size(values, "sliding_window"))
    if others := {str(kind) for kind in values.get("layer_types") or ()} - {"full_attention"}:
        raise ModelLoadError(f"layers of type {', '.join(sorted(others))} are not served.")
    return positions


def _size(values: Mapping[str, Any], name: str, most: int = 2**31 - 1) -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ModelLoadError(f"its configuration has {name}={value!r}, which is no size.")
    return value


def _epsilon(values: Mapping[str, Any]) -> float:
    value = values.get("rms_norm_eps", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ModelLoadError(f"its configuration has rms_norm_eps={value!r}.")
    return float(value)
