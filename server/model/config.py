"""The shape of a Llama-family decoder, read from the checkpoint's own configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.errors import ModelLoadError

# model_type of the checkpoint -> served. Others differ in ways this decoder does not compute
# (biases, sliding windows, per-head norms), so they are refused rather than approximated.
FAMILIES = frozenset({"llama"})
# Rotary scalings that depend on the position only. Others change with the length of the text so far.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the network. max_positions: the longest context it was trained for."""

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
    qk_norm: bool = False  # RMS norms over each head of q and k, before the rotary embedding
    tied: bool = True  # the output matrix is the embedding

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def cache_bytes_per_token(self) -> int:
        """Float32 keys and values of all layers."""
        return 2 * 4 * self.num_layers * self.num_kv_heads * self.head_dim


def read_config(hf: Any) -> DecoderConfig:
    """From a transformers configuration. Raises ModelLoadError for what this decoder does not compute."""
    if hf.model_type not in FAMILIES:
        raise ModelLoadError(
            f"models of type '{hf.model_type}' are not served; this server computes: {', '.join(sorted(FAMILIES))}."
        )
    if getattr(hf, "quantization_config", None) is not None:
        raise ModelLoadError("it is quantised; name the float checkpoint that it was made from.")
    for name, expected in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        value = getattr(hf, name, expected)
        if value != expected:
            raise ModelLoadError(f"{name}={value!r} is not served, only {expected!r}.")
    rope_type = hf.rope_parameters["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise ModelLoadError(f"rotary scaling '{rope_type}' is not served.")
    return DecoderConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocab_size=hf.vocab_size,
        rms_norm_eps=hf.rms_norm_eps,
        max_positions=hf.max_position_embeddings,
    )
