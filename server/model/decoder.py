"""The Llama decoder: one forward pass over the tokens of many sequences at once.

All tokens of a step lie flat in one (tokens, hidden) matrix, whatever sequence they belong to, so that every weight
matrix is read once per step. Only attention works sequence by sequence. It knows nothing of sampling or scheduling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from server.model.config import DecoderConfig
from server.model.kv_cache import SlotCache
from server.model.lora import AdapterWeights, apply_lora

# The seven linear layers of a block, as adapters name them.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one sequence: rows [first, first+count) of the flat matrix."""

    first: int
    count: int
    start: int  # position of the first token in its sequence
    cache: SlotCache


@dataclass(frozen=True, slots=True)
class AdapterSpan:
    """Rows [first, last) of the flat matrix that one adapter applies to."""

    first: int
    last: int
    weights: AdapterWeights


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm: Tensor
    post_attention_norm: Tensor
    linear: dict[str, Tensor]  # module name -> weight (out, in)


class LlamaDecoder:
    """Weights in float32, names as in transformers' LlamaForCausalLM.

    cos, sin: (positions, head_dim), the rotary table of transformers for this checkpoint, so that every kind of
    rotary scaling it knows gives the same numbers here.
    """

    def __init__(
        self, config: DecoderConfig, weights: Mapping[str, Tensor], cos: Tensor, sin: Tensor
    ) -> None:
        self.config = config
        self._embedding = weights["model.embed_tokens.weight"]  # (vocab, hidden)
        self._output = weights.get("lm_head.weight", self._embedding)
        self._norm = weights["model.norm.weight"]
        self._cos, self._sin = cos, sin
        self._layers = [self._layer(weights, i) for i in range(config.num_layers)]

    @staticmethod
    def _layer(weights: Mapping[str, Tensor], index: int) -> Layer:
        prefix = f"model.layers.{index}."
        return Layer(
            input_norm=weights[f"{prefix}input_layernorm.weight"],
            post_attention_norm=weights[f"{prefix}post_attention_layernorm.weight"],
            linear={name: weights[f"{prefix}self_attn.{name}.weight"] for name in ATTENTION}
            | {name: weights[f"{prefix}mlp.{name}.weight"] for name in MLP},
        )

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        pieces: Sequence[Piece],
        spans: Sequence[AdapterSpan],
        output_rows: Tensor,
    ) -> Tensor:
        """Compute all tokens, write their keys and values to the caches, return logits.

        token_ids, positions: (tokens,) int64. output_rows: (outputs,) int64, rows whose logits are wanted.
        Returns (outputs, vocab) float32.
        """
        x = F.embedding(token_ids, self._embedding)  # (tokens, hidden)
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        for index, layer in enumerate(self._layers):
            x = x + self._attention(
                index, layer, self._rms(x, layer.input_norm), cos, sin, pieces, spans
            )
            x = x + self._mlp(index, layer, self._rms(x, layer.post_attention_norm), spans)
        return F.linear(self._rms(x[output_rows], self._norm), self._output)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _linear(
        self, index: int, layer: Layer, name: str, x: Tensor, spans: Sequence[AdapterSpan]
    ) -> Tensor:
        y = F.linear(x, layer.linear[name])
        for span in spans:
            apply_lora(
                span.weights, index, name, x[span.first : span.last], y[span.first : span.last]
            )
        return y

    def _attention(
        self,
        index: int,
        layer: Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        pieces: Sequence[Piece],
        spans: Sequence[AdapterSpan],
    ) -> Tensor:
        c = self.config
        q = self._linear(index, layer, "q_proj", x, spans).view(-1, c.num_heads, c.head_dim)
        k = self._linear(index, layer, "k_proj", x, spans).view(-1, c.num_kv_heads, c.head_dim)
        v = self._linear(index, layer, "v_proj", x, spans).view(-1, c.num_kv_heads, c.head_dim)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        out = torch.empty_like(q)  # (tokens, heads, head_dim)
        for piece in pieces:
            rows = slice(piece.first, piece.first + piece.count)
            keys, values = piece.cache.extend(index, piece.start, k[rows], v[rows])
            out[rows] = self._attend(q[rows], keys, values, piece.start)
        return self._linear(index, layer, "o_proj", out.view(-1, c.num_heads * c.head_dim), spans)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """q: (count, heads, head_dim); keys, values: (kv_heads, start+count, head_dim). Causal."""
        c = self.config
        count, group = q.shape[0], c.queries_per_kv_head
        if count == 1:
            # The queries that share a key head act as that head's rows: no copy of keys, no mask.
            out = F.scaled_dot_product_attention(
                q.view(c.num_kv_heads, group, c.head_dim), keys, values
            )
            return out.reshape(1, c.num_heads, c.head_dim)
        mask = None
        if start:
            mask = torch.ones(count, start + count, dtype=torch.bool).tril(start)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=group > 1,
        )
        return out.squeeze(0).transpose(0, 1)

    def _mlp(self, index: int, layer: Layer, x: Tensor, spans: Sequence[AdapterSpan]) -> Tensor:
        gate = F.silu(self._linear(index, layer, "gate_proj", x, spans))
        up = self._linear(index, layer, "up_proj", x, spans)
        return self._linear(index, layer, "down_proj", gate * up, spans)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv:2104.09864), halves paired as in transformers' Llama."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
