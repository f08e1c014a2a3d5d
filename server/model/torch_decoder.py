"""The decoder in torch: one forward pass over the tokens of many sequences at once. Knows nothing of sampling.

All tokens of a step lie flat in one (tokens, hidden) matrix, whatever sequence they belong to; only attention works
sequence by sequence. This is the plain path, for machines without a compiler: readable before fast, and without the
native runner's promise that a row's bits do not depend on its neighbours (F.linear chooses its order of summation
by the number of rows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from server.model.config import DecoderConfig
from server.model.torch_blocks import BlockPool

# (layer, module) -> A (rank, in), B (out, rank), scaling.
LoraTensors = Mapping[tuple[int, str], tuple[Tensor, Tensor, float]]


class ParameterSource(Protocol):
    def read(self, name: str) -> NDArray[Any]:
        """A tensor by transformers' name: float32, or uint16 that holds the bits of bfloat16 values."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one sequence: rows [first, first+count) of the flat matrix.

    start: position of the first. blocks: (blocks up to the last position,) int64.
    """

    first: int
    count: int
    start: int
    blocks: Tensor


@dataclass(frozen=True, slots=True)
class AdapterSpan:
    """Rows [first, last) of the flat matrix that one adapter applies to."""

    first: int
    last: int
    weights: LoraTensors


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies where in a step. positions, blocks, offsets: (tokens,) int64, of each token in its sequence and in
    the pool."""

    positions: Tensor
    blocks: Tensor
    offsets: Tensor
    pieces: Sequence[Piece]
    spans: Sequence[AdapterSpan]


class TorchDecoder:
    """Weights in float32, named as in transformers' Llama, Mistral, Qwen2 and Qwen3.

    cos, sin: (positions, head_dim/2) float32, transformers' rotary table for this checkpoint.
    """

    def __init__(
        self,
        config: DecoderConfig,
        checkpoint: ParameterSource,
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
    ) -> None:
        self.config = config
        self._cos, self._sin = torch.from_numpy(cos), torch.from_numpy(sin)
        self._embedding = float_tensor(
            checkpoint.read("model.embed_tokens.weight")
        )  # (vocab, hidden)
        self._output = (
            self._embedding if config.tied else float_tensor(checkpoint.read("lm_head.weight"))
        )
        self._norm = float_tensor(checkpoint.read("model.norm.weight"))
        names = _layer_tensors(config)
        self._layers = [
            {name: float_tensor(checkpoint.read(f"model.layers.{i}.{name}")) for name in names}
            for i in range(config.num_layers)
        ]

    def forward(self, token_ids: Tensor, layout: Layout, pool: BlockPool) -> Tensor:
        """Compute all tokens and write their keys and values to the pool.

        token_ids: (tokens,) int64. Returns (tokens, hidden): what `logits` takes.
        """
        x = F.embedding(token_ids, self._embedding)
        for index in range(self.config.num_layers):
            normed = self._rms(x, self._layers[index]["input_layernorm.weight"])
            x = x + self._attention(index, normed, layout, pool)
            normed = self._rms(x, self._layers[index]["post_attention_layernorm.weight"])
            x = x + self._mlp(index, normed, layout)
        return self._rms(x, self._norm)

    def logits(self, hidden: Tensor) -> NDArray[np.float32]:
        """(tokens, hidden) -> (tokens, vocab)."""
        out: NDArray[np.float32] = F.linear(hidden, self._output).numpy()
        return out

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _linear(self, index: int, module: str, x: Tensor, layout: Layout) -> Tensor:
        layer = self._layers[index]
        y = F.linear(x, layer[f"{module}.weight"], layer.get(f"{module}.bias"))
        for span in layout.spans:
            pair = span.weights.get((index, module.rpartition(".")[2]))
            if pair is not None:
                a, b, scaling = pair
                y[span.first : span.last] += (
                    F.linear(F.linear(x[span.first : span.last], a), b) * scaling
                )
        return y

    def _attention(self, index: int, x: Tensor, layout: Layout, pool: BlockPool) -> Tensor:
        c, layer = self.config, self._layers[index]
        q = self._linear(index, "self_attn.q_proj", x, layout).view(-1, c.num_heads, c.head_dim)
        k = self._linear(index, "self_attn.k_proj", x, layout).view(-1, c.num_kv_heads, c.head_dim)
        v = self._linear(index, "self_attn.v_proj", x, layout).view(-1, c.num_kv_heads, c.head_dim)
        if c.qk_norm:
            q = self._rms(q, layer["self_attn.q_norm.weight"])
            k = self._rms(k, layer["self_attn.k_norm.weight"])
        q, k = self._rotate(q, layout.positions), self._rotate(k, layout.positions)
        pool.write(index, layout.blocks, layout.offsets, k, v)
        out = torch.empty_like(q)  # (tokens, heads, head_dim)
        for piece in layout.pieces:
            rows = slice(piece.first, piece.first + piece.count)
            keys, values = pool.read(index, piece.blocks, piece.start + piece.count)
            out[rows] = _attend(q[rows], keys, values, piece.start)
        return self._linear(index, "self_attn.o_proj", out.flatten(1), layout)

    def _mlp(self, index: int, x: Tensor, layout: Layout) -> Tensor:
        gate = F.silu(self._linear(index, "mlp.gate_proj", x, layout))
        up = self._linear(index, "mlp.up_proj", x, layout)
        return self._linear(index, "mlp.down_proj", gate * up, layout)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary position embedding (arXiv:2104.09864), halves paired as in transformers' Llama."""
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _attend(q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """q: (count, heads, head_dim); keys, values: (start+count, kv_heads, head_dim). Causal; like q."""
    count, length = q.shape[0], keys.shape[0]
    mask = None if count == 1 else torch.ones(count, length, dtype=torch.bool).tril(start)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys.transpose(0, 1).unsqueeze(0),
        values.transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        enable_gqa=q.shape[1] != keys.shape[1],
    )
    return out.squeeze(0).transpose(0, 1)


def _layer_tensors(config: DecoderConfig) -> list[str]:
    """The names of one layer's tensors, after model.layers.N."""
    inputs = [f"self_attn.{module}" for module in ("q_proj", "k_proj", "v_proj")]
    linear = [*inputs, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    names = [*linear, "input_layernorm", "post_attention_layernorm"]
    if config.qk_norm:
        names += ["self_attn.q_norm", "self_attn.k_norm"]
    biased = (inputs if config.qkv_bias else []) + (["self_attn.o_proj"] if config.o_bias else [])
    return [f"{name}.weight" for name in names] + [f"{name}.bias" for name in biased]


def float_tensor(array: NDArray[Any]) -> Tensor:
    """float32, or bfloat16 as uint16, to float32: the same values."""
    if array.dtype == np.uint16:  # bfloat16 is the upper half of float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    # A checkpoint's arrays may be maps of a file that cannot be written; torch wants to be able to.
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
