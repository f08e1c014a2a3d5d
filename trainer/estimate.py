"""What a run will need: memory by part, floating-point operations, seconds. Arithmetic over recipe and model shape.

The constants marked "measured" come from docs/results/training.md; the rest is counting. It reads no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config import Recipe

GB = 1e9
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight, its block's scale, and that scale's own scale
# Measured on an H100: bytes per token of the forward and backward pass of one layer, over what that layer keeps.
WORKING = {"peft": 2.63, "unsloth": 1.62}
UNSLOTH_BUFFERS_GB = 0.13  # measured
ALLOCATOR = 1.04  # measured: reserved over allocated
EVALUATION_BYTES = 3.6  # measured: per logit of an evaluation's pass, most of them in 16 bits
EVALUATION_POSITIONS = 2048
# Dense tensor-core peak of the vendor's data sheet in the type that the card trains in, in FLOP/s.
PEAKS = {"T4": 65e12, "L4": 121e12, "A10G": 70e12, "A100": 312e12, "H100": 989e12}
OLD_CARDS = frozenset({"T4"})  # below compute capability 8.0: rows are padded there
PACKED_SHARE = 0.35  # measured on an H100: of the peak, counting recomputation
PADDED_SHARE = 0.25  # usual for Unsloth where the GPU is the limit; not measured here
PASS_SECONDS = 0.42  # measured: a padded pass of Unsloth's takes the processor at least this


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama-family decoder."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a configuration of transformers."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
        )

    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of a block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.width, q),
            "k_proj": (self.width, kv),
            "v_proj": (self.width, kv),
            "o_proj": (q, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(a * b for a, b in self.linears().values())

    @property
    def head_parameters(self) -> int:
        return self.width * self.vocabulary

    @property
    def other_parameters(self) -> int:
        """Embeddings, output layer and norms."""
        norms = (2 * self.layers + 1) * self.width
        return self.head_parameters * (1 if self.tied else 2) + norms

    def adapter_parameters(self, recipe: Recipe) -> int:
        """Of a LoRA of the recipe."""
        sizes = self.linears()
        wanted = [sizes[name] for name in recipe.lora.target_modules if name in sizes]
        return self.layers * recipe.lora.r * sum(a + b for a, b in wanted)


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """GB (1e9 bytes) on the device."""

    weights: float
    adapter: float  # and its gradients
    optimiser: float
    kept: float  # activations kept for the backward pass
    working: float  # of the layer at hand, or of the output layer
    evaluation: float  # what an evaluation needs on top of weights and adapter

    @property
    def training(self) -> float:
        """Peak that the allocator reserves while training."""
        parts = self.weights + self.adapter + self.optimiser + self.kept + self.working
        return parts * ALLOCATOR

    @property
    def peak(self) -> float:
        """Peak that the allocator reserves, evaluations included: they come between the steps, not on top of one."""
        evaluating = self.weights + self.adapter + self.optimiser + self.evaluation
        return max(self.training, evaluating * ALLOCATOR)


def memory(recipe: Recipe, shape: Shape, *, backend: str, padding_free: bool) -> MemoryParts:
    """The memory of a run at its longest rows, with bfloat16 or float16 activations."""
    training = recipe.training
    float_bytes = 4 if recipe.model.dtype == "float32" else 2
    weight_bytes = NF4_BYTES if recipe.model.load_in_4bit else float_bytes
    weights = shape.linear_parameters * weight_bytes + shape.other_parameters * float_bytes
    adapter = shape.adapter_parameters(recipe)
    tokens = training.per_device_train_batch_size * recipe.model.max_seq_length
    if padding_free:
        rows = training.gradient_accumulation_steps * tokens
        tokens = min(max(training.max_pass_tokens, recipe.model.max_seq_length), rows)
    q_and_kv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer = tokens * (5 * shape.width + 2 * q_and_kv + 3 * shape.inner) * float_bytes
    kept = tokens * shape.width * float_bytes * shape.layers
    if not training.gradient_checkpointing:
        kept = layer * shape.layers
    elif backend == "unsloth":
        kept = 0  # in the computer's own memory
    working = layer * WORKING[backend] if training.gradient_checkpointing else layer
    return MemoryParts(
        weights=weights / GB + (UNSLOTH_BUFFERS_GB if backend == "unsloth" else 0.0),
        adapter=adapter * 8 / GB,
        optimiser=adapter * (2 if training.optim == "adamw_8bit" else 8) / GB,
        kept=kept / GB,
        working=working / GB,
        evaluation=EVALUATION_BYTES * EVALUATION_POSITIONS * shape.vocabulary / GB,
    )


def step_flops(
    shape: Shape, recipe: Recipe, tokens: float, mean_square: float, *, forward_only: bool = False
) -> float:
    """Floating-point operations over `tokens`, recomputation counted.

    mean_square: sum of the squared row lengths over the sum of the lengths (causal attention).
    """
    linear, head = shape.linear_parameters, shape.head_parameters
    attention = 2 * shape.heads * shape.head_dim * shape.layers * mean_square
    if forward_only:
        return tokens * (2 * linear + 2 * head + attention)
    adapter = shape.adapter_parameters(recipe)
    if recipe.training.gradient_checkpointing:
        return tokens * (6 * linear + 4 * head + 8 * adapter + 4 * attention)
    return tokens * (4 * linear + 4 * head + 6 * adapter + 3 * attention)


def step_seconds(card: str, flops: float, *, passes: int, padding: float, packed: bool) -> float:
    """Seconds of a step on a card. padding: places per real token; packed: rows end to end, where the card can."""
    if packed and card not in OLD_CARDS:
        return flops / (PEAKS[card] * PACKED_SHARE)
    return max(flops * padding / (PEAKS[card] * PADDED_SHARE), passes * PASS_SECONDS)
