"""Writes Llama models, and LoRA adapters for them, as GGUF: the format of llama.cpp and of what is built on it.

The gguf package knows the format; this knows how a Llama's tensors and tokenizer are laid down in it. Tensors and a
tokenizer come in, files go out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from trainer.errors import ConfigError

Array = NDArray[Any]
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def write_model(
    path: Path,
    name: str,
    config: Any,
    tensors: Iterable[tuple[str, Array]],
    tokenizer: Any,
    stop_token_id: int,
    dtype: str,
) -> None:
    """A whole model. config: transformers' LlamaConfig; tensors: (its name, float32 values); dtype: a key of TYPES.

    Raises ConfigError for a tokenizer or a tensor that has no known place in the format.
    """
    kind, file_type = TYPES[dtype]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(file_type)
    _add_shape(writer, config)
    _add_tokenizer(writer, tokenizer, stop_token_id)
    for key, values in tensors:
        target = tensor_name(key)
        if target is None:
            raise ConfigError(f"The tensor {key} of this model has no place in a Llama's GGUF.")
        ordered = _interleaved(target, values, config).astype(np.float32)
        if values.ndim == 1 or dtype == "float32":
            writer.add_tensor(f"{target}.weight", ordered)
        else:
            packed = gguf.quants.quantize(ordered, kind)
            writer.add_tensor(f"{target}.weight", packed, raw_dtype=kind)
    if (factors := rope_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    _finish(writer)


def write_lora(
    path: Path, name: str, config: Any, adapter: Mapping[str, Any], tensors: Mapping[str, Array]
) -> None:
    """An adapter to apply to the base's GGUF. adapter: PEFT's configuration; tensors: PEFT's names and float32 values.

    Raises ConfigError for a tensor that is not of a plain LoRA.
    """
    rank, alpha = int(adapter["r"]), float(adapter["lora_alpha"])
    if adapter.get("use_rslora"):
        alpha *= math.sqrt(rank)  # the format's scale is always alpha / rank
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for key, values in tensors.items():
        match = _LORA.fullmatch(key)
        target = tensor_name(f"{match[1]}.weight") if match else None
        if match is None or target is None:
            raise ConfigError(f"{key} is not a tensor of a plain LoRA for a Llama.")
        # The rows of B are the layer's outputs.
        ordered = _interleaved(target, values, config) if match[2] == "B" else values
        writer.add_tensor(f"{target}.weight.lora_{match[2].lower()}", ordered.astype(np.float32))
    _finish(writer)


def tensor_name(key: str) -> str | None:
    """GGUF's name for a weight of a Llama in transformers; None if there is none."""
    stem = key.removesuffix(".weight")
    if match := _LAYER.fullmatch(stem):
        inner = LAYER_TENSORS.get(match[2])
        return f"blk.{match[1]}.{inner}" if inner else None
    return OTHER_TENSORS.get(stem)


def rope_factors(config: Any) -> Array | None:
    """What Llama 3 divides its rotary frequencies by, (head_dim / 2,) float32; None if it does not.

    The formula of the Llama 3.1 model code: high frequencies stay, low ones are divided by `factor`, and those
    between go smoothly from one to the other.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelengths = 2 * np.pi / frequencies
    old = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((old / wavelengths - low) / (high - low), 0.0, 1.0)
    factors: Array = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _interleaved(target: str, values: Array, config: Any) -> Array:
    """The rows of queries and keys in llama.cpp's order: it rotates neighbours, transformers rotates halves."""
    if target.endswith("attn_q"):
        heads = config.num_attention_heads
    elif target.endswith("attn_k"):
        heads = config.num_key_value_heads
    else:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, stop_token_id: int) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer_name(state))
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = [names.get(index, f"[PAD{index}]") for index in range(max(names) + 1)]
    kinds = [
        gguf.TokenType.CONTROL
        if index in special
        else gguf.TokenType.NORMAL
        if index in names
        else gguf.TokenType.UNUSED
        for index in range(len(tokens))
    ]
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = state["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(stop_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)  # the template writes it
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer_name(state: Mapping[str, Any]) -> str:
    """llama.cpp's name for how the text is cut before BPE. Raises ConfigError for one that is not known."""
    pre = state.get("pre_tokenizer") or {}
    text = json.dumps(pre)
    if state["model"].get("type") == "BPE" and r"\\p{N}{1,3}" in text:
        return "llama-bpe"
    if state["model"].get("type") == "BPE" and '"individual_digits": true' in text:
        return "smollm"
    if pre.get("type") == "ByteLevel" and pre.get(
        "use_regex"
    ):  # nothing but GPT-2's own regular expression
        return "gpt-2"
    raise ConfigError(
        "This model's tokenizer is neither Llama 3's, SmolLM's nor GPT-2's, and its name in GGUF is not known; export "
        "it with --merged, and convert that with llama.cpp's own script."
    )


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
