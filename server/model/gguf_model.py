"""A GGUF file in transformers' words: its metadata as a configuration, its tensors under parameter names.

Names: https://github.com/ggml-org/llama.cpp (gguf-py/gguf/constants.py). It reads no values but the rotary factors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelLoadError
from server.model.gguf_file import GGUFHeader, read_tensor
from server.model.mapped_file import MappedFile
from server.model.rope import FACTORS

ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})
# llama.cpp rotates neighbouring pairs in this architecture, so its converter reorders the rows of q and k.
PERMUTED = frozenset({"llama"})
# Scaling of the rotary frequencies that depends on the dimension (Llama 3.1): divisors, stored as a tensor.
ROPE_FACTORS = "rope_freqs.weight"
OUTPUT = "output.weight"

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    OUTPUT: "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d{1,4})\.([a-z_]+)\.(weight|bias)")


def parameter_name(name: str) -> str | None:
    """transformers' name of a tensor, or None where it has none."""
    if name in _TOP:
        return _TOP[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        return None
    return f"model.layers.{int(match[1])}.{_IN_LAYER[match[2]]}.{match[3]}"


def settings_of(header: GGUFHeader, file: MappedFile) -> dict[str, Any]:
    """The metadata in the words of config.json. Raises ModelLoadError for an architecture that is not served."""
    data = header.metadata
    family = data.get("general.architecture")
    if family not in ARCHITECTURES:
        raise ModelLoadError(
            f"GGUF models of architecture {family!r} are not served, only: {', '.join(sorted(ARCHITECTURES))}."
        )
    if data.get("split.count", 1) not in (0, 1):
        raise ModelLoadError("it is one of several parts; join them with: llama-gguf-split --merge")

    def get(name: str) -> Any:
        return data.get(f"{family}.{name}")

    hidden, heads = get("embedding_length"), get("attention.head_count")
    embedding = header.tensors.get("token_embd.weight")
    settings = {
        "model_type": family,
        "num_hidden_layers": get("block_count"),
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": get("context_length"),
        "vocab_size": embedding.shape[0] if embedding is not None else None,
        "tie_word_embeddings": OUTPUT not in header.tensors,
        "eos_token_id": _end_tokens(data),
        "rope_parameters": _rope(header, file, get),
    }
    rotated = get("rope.dimension_count")
    head_dim = get("attention.key_length") or (rotated if family == "llama" else None)
    if head_dim is not None:
        settings["head_dim"] = head_dim
    elif all(isinstance(n, int) and n > 0 for n in (hidden, heads)):
        settings["head_dim"] = hidden // heads
    if rotated is not None and rotated != settings.get("head_dim"):
        raise ModelLoadError("models that rotate a part of each head are not served.")
    if window := get("attention.sliding_window"):
        settings |= {"model_type": "mistral", "sliding_window": window} if family == "llama" else {}
        settings |= {"use_sliding_window": True} if family != "llama" else {}
    return {name: value for name, value in settings.items() if value is not None}


def _end_tokens(data: Mapping[str, Any]) -> list[int] | None:
    """End of text, of turn, and of message (before a tool's answer)."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [data[key] for name in names if (key := f"tokenizer.ggml.{name}") in data]
    return found or None


def _rope(header: GGUFHeader, file: MappedFile, get: Any) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": get("rope.freq_base") or 10000.0}
    kind = get("rope.scaling.type") or "none"
    if kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": get("rope.scaling.factor"),
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        }
        if get("rope.scaling.attn_factor"):
            rope["attention_factor"] = get("rope.scaling.attn_factor")
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    elif kind != "none":
        raise ModelLoadError(f"rotary scaling {kind!r} is not served.")
    if ROPE_FACTORS in header.tensors:
        if kind != "none":
            raise ModelLoadError(
                f"rotary scaling {kind!r} together with {ROPE_FACTORS} is not served."
            )
        rope |= {
            "rope_type": FACTORS,
            FACTORS: read_tensor(file, header.tensors[ROPE_FACTORS]).tolist(),
        }
    return rope


def unpermute(values: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Undo llama.cpp's order of the rows of q or k: (pair, half) within each head becomes (half, pair)."""
    rows = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
