"""Writes a transformers model as GGUF, the way llama.cpp's convert_hf_to_gguf.py does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def permute(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """LlamaModel.permute of llama.cpp's converter."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def llama3_factors(theta: float, dim: int, rope: dict[str, Any]) -> np.ndarray[Any, Any]:
    """generate_extra_tensors of llama.cpp's converter."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    trained, factor = rope["original_max_position_embeddings"], rope["factor"]
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * theta ** (i / dim)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def write_gguf(path: Path, model: Any, kind: str = "F32", **metadata: Any) -> None:
    """kind: ggml's name of the type of all matrices; vectors are float32."""
    import gguf

    config = model.config
    arch = "llama" if config.model_type == "mistral" else config.model_type
    writer = gguf.GGUFWriter(path, arch)
    head_dim = model.model.layers[0].self_attn.head_dim
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "rope.dimension_count": head_dim,
    }
    for name, value in numbers.items():
        writer.add_uint32(f"{arch}.{name}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", config.rope_parameters["rope_theta"])
    for name, value in metadata.items():
        key = name.replace("__", ".")
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        (writer.add_float32 if isinstance(value, float) else add)(f"{arch}.{key}", value)
    _add_vocabulary(writer, config.vocab_size)
    dtype = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if arch == "llama" and "q_proj" in name:
            values = permute(values, config.num_attention_heads)
        if arch == "llama" and "k_proj" in name:
            values = permute(values, config.num_key_value_heads)
        if values.ndim == 2 and kind != "F32":
            packed = gguf.quants.quantize(values, dtype)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=dtype)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        factors = llama3_factors(rope["rope_theta"], head_dim, rope)
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, size: int) -> None:
    """The byte-level one of tests/models.py, with padding up to the embedding's size."""
    from tests.models import CHATML, byte_tokenizer

    vocab = byte_tokenizer().get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    tokens = [*tokens, "ab", *(f"[PAD{i}]" for i in range(len(tokens) + 1, size))][:size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(size)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
