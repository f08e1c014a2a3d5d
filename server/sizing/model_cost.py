"""What one token of a model costs: bytes that are read, and floating-point operations. From its shape alone."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from server.model.checkpoint import EMBEDDING, OUTPUT, expected_shapes
from server.model.config import DecoderConfig

BYTES_PER_VALUE = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class ModelCost:
    """config: the shape. weight_bytes: all parameters as they lie in memory, read once in every step.

    adapter_rank: of LoRA pairs (arXiv:2106.09685) on all seven linear layers of every layer; 0 for none.
    """

    config: DecoderConfig
    weight_bytes: int
    adapter_rank: int = 0

    @property
    def cache_bytes_per_token(self) -> int:
        """Float32 keys and values: 2 · 4 bytes · layers · KV heads · head_dim, as the server stores them."""
        return self.config.cache_bytes_per_token

    @property
    def adapter_bytes(self) -> int:
        """One adapter in memory: float32 A (rank, in) and B (out, rank) of each linear layer."""
        return 4 * self._adapter_values

    @property
    def body_flops(self) -> int:
        """Per token without the output layer: 2 for each weight of a matrix, a product and a sum.

        2·N per token: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; N without the embedding.
        """
        return 2 * (_matrix_values(self.config) + self._adapter_values)

    @property
    def output_flops(self) -> int:
        """The output layer, for a token after which one is drawn. A prompt needs it at its last position only."""
        return 2 * self.config.vocab_size * self.config.hidden_size

    @property
    def attention_flops_per_position(self) -> int:
        """Per token and position it attends to: 4 · layers · heads · head_dim (Q·K and the weighted sum of V).

        The forward third of the 12·L·H·Q·T of Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
        """
        return 4 * self.config.num_layers * self.config.num_heads * self.config.head_dim

    @property
    def _adapter_values(self) -> int:
        c = self.config
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        ends = (
            2 * (c.hidden_size + q)  # q, o
            + 2 * (c.hidden_size + kv)  # k, v
            + 3 * (c.hidden_size + c.intermediate_size)  # gate, up, down
        )
        return self.adapter_rank * c.num_layers * ends


def weight_bytes(config: DecoderConfig, storage: str) -> int:
    """All parameters, matrices stored as `storage` ("bfloat16" or "float32"), vectors as float32.

    bfloat16 applies where it holds every value of a matrix exactly, as in most published checkpoints.
    """
    size = BYTES_PER_VALUE[storage]
    return sum(
        math.prod(shape) * (size if len(shape) == 2 else 4)
        for shape in expected_shapes(config).values()
    )


@functools.cache  # the simulation asks at every step
def _matrix_values(config: DecoderConfig) -> int:
    """Weights of the layers' matrices: neither the embedding, a look-up, nor the output layer."""
    return sum(
        math.prod(shape)
        for name, shape in expected_shapes(config).items()
        if len(shape) == 2 and name not in (EMBEDDING, OUTPUT)
    )
