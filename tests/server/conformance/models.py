"""Small random models and adapters made by transformers and PEFT (the oracles), and what a runner is built from."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from server.model.config import DecoderConfig
from server.model.lora import AdapterWeights, LoraPair
from server.step import Runner

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCAB = 272


class DictCheckpoint:
    """A checkpoint in memory. as_bfloat16: values that bfloat16 holds exactly are given as its bits."""

    def __init__(self, model: Any, *, as_bfloat16: bool = False) -> None:
        self._tensors = {n: t.detach().numpy() for n, t in model.named_parameters()}
        self._as_bfloat16 = as_bfloat16

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str) -> NDArray[Any]:
        values = self._tensors[name]
        bits = values.view(np.uint32)
        if self._as_bfloat16 and not (bits & 0xFFFF).any():
            return (bits >> 16).astype(np.uint16)
        return values.copy()


@dataclass(frozen=True)
class Model:
    """oracle: transformers' own module. cos, sin: (positions, head_dim/2)."""

    oracle: Any
    config: DecoderConfig
    checkpoint: DictCheckpoint
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]

    def first_layers(self, count: int) -> Model:
        oracle = copy.deepcopy(self.oracle)
        oracle.model.layers = oracle.model.layers[:count]
        oracle.model.config.num_hidden_layers = count
        return replace(self, oracle=oracle, config=replace(self.config, num_layers=count))


# Builds the runner under test: (model, bytes for KV blocks) -> runner.
Build = Callable[[Model, int], Runner]


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

# name -> (transformers' class prefix, changes to its configuration)
SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, linear rope, 4/4 heads": (
        "Llama",
        {"rope_parameters": LINEAR_ROPE, "num_key_value_heads": 4},
    ),
    "llama, llama3 rope, 4/1 heads, not tied": (
        "Llama",
        {"rope_parameters": LLAMA3, "num_key_value_heads": 1, "tie_word_embeddings": False},
    ),
    "llama, yarn rope, not tied": (
        "Llama",
        {"rope_parameters": YARN, "tie_word_embeddings": False},
    ),
    "llama, biases": ("Llama", {"attention_bias": True}),
    "llama, 9/3 heads of 64": (
        "Llama",
        {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "hidden_size": 144},
    ),
    "llama, heads of 32, odd sizes": (
        "Llama",
        {"head_dim": 32, "hidden_size": 72, "intermediate_size": 100, "vocab_size": 259},
    ),
    "llama, heads of 80": ("Llama", {"head_dim": 80}),
    "mistral": ("Mistral", {"sliding_window": None, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False}),
    "llama, 3001 tokens": ("Llama", {"vocab_size": 3001, "hidden_size": 32}),
    "llama in bfloat16": ("Llama", {"dtype": "bfloat16"}),
}


@functools.cache
def build_model(spec: str = "llama", layers: int = 2) -> Model:
    import transformers

    family, changes = SPECS[spec]
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        # Wide enough that logits differ by more than rounding, so that greedy choices are decided.
        "initializer_range": 0.2,
        "attn_implementation": "eager",
    }
    torch.manual_seed(7)
    exact = changes.get("dtype") == "bfloat16"
    changes = {name: value for name, value in changes.items() if name != "dtype"}
    hf = getattr(transformers, f"{family}Config")(**settings | changes)
    oracle = getattr(transformers, f"{family}ForCausalLM")(hf).eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            # transformers starts norms at 1 and biases at 0, where a mistake in them would not show.
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
            if exact:
                parameter.copy_(parameter.bfloat16().float())
    oracle.generation_config.eos_token_id = None
    return model_of(oracle, as_bfloat16=exact)


def load_model(folder: Path) -> Model:
    """A real one, as it was saved."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    oracle.generation_config.eos_token_id = None
    return model_of(oracle)


def model_of(oracle: Any, *, as_bfloat16: bool = False) -> Model:
    hf = oracle.config
    size, positions = hf.head_dim, 512
    with torch.no_grad():
        cos, sin = oracle.model.rotary_emb(torch.zeros(1), torch.arange(positions).unsqueeze(0))
    biased = hf.model_type == "qwen2" or getattr(hf, "attention_bias", False)
    config = DecoderConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=size,
        vocab_size=hf.vocab_size,
        rms_norm_eps=hf.rms_norm_eps,
        max_positions=positions,
        qkv_bias=biased,
        o_bias=biased and hf.model_type != "qwen2",
        qk_norm=hf.model_type == "qwen3",
        tied=hf.tie_word_embeddings,
    )
    return Model(
        oracle=oracle,
        config=config,
        checkpoint=DictCheckpoint(oracle, as_bfloat16=as_bfloat16),
        cos=np.ascontiguousarray(cos[0, :, : size // 2].numpy()),
        sin=np.ascontiguousarray(sin[0, :, : size // 2].numpy()),
    )


# name -> LoraConfig's settings
ADAPTERS: dict[str, dict[str, Any]] = {
    "all modules": {"r": 8, "lora_alpha": 16, "target_modules": LINEAR},
    "q and v only": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "odd rank, mlp only": {"r": 3, "lora_alpha": 5, "target_modules": ["gate_proj", "down_proj"]},
    "rsLoRA": {"r": 16, "lora_alpha": 16, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": LINEAR,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "up_proj": 12},
        "alpha_pattern": {"layers.1.self_attn.k_proj": 64, "o_proj": 3},
    },
    "one layer": {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "layers_to_transform": [1]},
}


@functools.cache
def build_adapter(kind: str, spec: str = "llama") -> tuple[Any, AdapterWeights]:
    """PEFT's unmerged model of an adapter with B that is not zero, and its weights for a runner."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(sorted(ADAPTERS).index(kind))
    config = LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[kind])
    peft = get_peft_model(copy.deepcopy(build_model(spec).oracle), config).eval()
    pairs = {}
    with torch.no_grad():
        for name, module in peft.named_modules():
            if not hasattr(module, "lora_B"):
                continue
            module.lora_B["default"].weight.normal_(std=0.1)
            place = (int(name.split(".layers.")[1].split(".")[0]), name.rpartition(".")[2])
            pairs[place] = LoraPair(
                a=module.lora_A["default"].weight.detach().numpy().copy(),
                b=module.lora_B["default"].weight.detach().numpy().copy(),
                scaling=float(module.scaling["default"]),
            )
    return peft, AdapterWeights(key=f"{kind}@1", digest=kind, pairs=pairs)


def oracle_logits(oracle: Any, tokens: list[int]) -> NDArray[np.float32]:
    """(tokens, vocab), by transformers or PEFT."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = oracle(torch.tensor([tokens])).logits[0].numpy()
    return logits


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = torch.from_numpy(logits.copy()).double()
    out: NDArray[np.float64] = torch.log_softmax(exact, dim=-1).numpy()
    return out
