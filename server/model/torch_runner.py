"""Batch -> tensors -> forward -> tokens: the engine's Runner in torch, for machines without a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from server.model.adapter import module_sizes
from server.model.lora import AdapterWeights, Ranks
from server.model.sampler import draw_row, score
from server.model.torch_blocks import BlockPool
from server.model.torch_decoder import (
    AdapterSpan,
    Layout,
    LoraTensors,
    Piece,
    TorchDecoder,
    float_tensor,
)
from server.step import Batch, Row, RowResult
from server.types import TokenLogprob

# So many positions' logits at a time: a long prompt's, all at once, would be gigabytes.
SCORED_AT_ONCE = 64


# Blocks beyond those that the engine hands out: for computing something beside its sequences (score.py).
SPARE_BLOCKS = 2


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class TensorAdapter:
    """An adapter version as tensors. num_bytes: memory they take."""

    key: str
    digest: str
    num_bytes: int
    tensors: LoraTensors


class TorchRunner:
    """Keeps the KV blocks, and every adapter's tensors for as long as the adapter lives."""

    def __init__(self, decoder: TorchDecoder, kv_bytes: int, block_size: int = 32) -> None:
        """Raises ValueError if kv_bytes is less than one block."""
        self._decoder = decoder
        self._pool = BlockPool(decoder.config, kv_bytes, block_size, SPARE_BLOCKS)
        self._adapters: WeakKeyDictionary[AdapterWeights, LoraTensors] = WeakKeyDictionary()

    @property
    def block_size(self) -> int:
        return self._pool.block_size

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def spare_blocks(self) -> tuple[int, ...]:
        return tuple(range(self.num_blocks, self.num_blocks + SPARE_BLOCKS))

    def adapter_bytes(self, ranks: Ranks) -> int:
        """Memory of the tensors of such an adapter."""
        sizes = module_sizes(self._decoder.config)
        return 4 * sum(rank * sum(sizes[module]) for (_, module), rank in ranks.items())

    def pack(self, adapter: AdapterWeights) -> TensorAdapter:
        """May run beside a step."""
        tensors = _tensors_of(adapter)
        return TensorAdapter(
            adapter.key, adapter.digest, self.adapter_bytes(adapter.ranks), tensors
        )

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[RowResult]:
        self._pool.copy(batch.copies)
        if not batch.rows:
            return []
        # Rows of one adapter lie side by side, so that it is applied once per module and not once per row.
        order = sorted(range(len(batch.rows)), key=lambda i: _adapter_key(batch.rows[i]))
        rows = [batch.rows[i] for i in order]
        pieces = _pieces(rows, self.block_size)
        token_ids = torch.tensor([token for row in rows for token in row.token_ids])
        layout = self._layout(rows, pieces)
        hidden = self._decoder.forward(token_ids, layout, self._pool)  # (tokens, hidden)
        results: list[RowResult] = [RowResult()] * len(rows)
        for i, result in zip(order, self._results(rows, pieces, hidden), strict=True):
            results[i] = result
        return results

    def _layout(self, rows: Sequence[Row], pieces: Sequence[Piece]) -> Layout:
        positions = [torch.arange(p.start, p.start + p.count) for p in pieces]
        blocks = [
            piece.blocks[own // self.block_size]
            for piece, own in zip(pieces, positions, strict=True)
        ]
        flat = torch.cat(positions)
        spans = self._spans(rows, pieces)
        return Layout(flat, torch.cat(blocks), flat % self.block_size, pieces, spans)

    def _results(
        self, rows: Sequence[Row], pieces: Sequence[Piece], hidden: Tensor
    ) -> list[RowResult]:
        ends = [piece.first + piece.count for piece in pieces]
        drawn = [hidden[end - row.num_draws : end] for row, end in zip(rows, ends, strict=True)]
        logits = self._decoder.logits(torch.cat(drawn))
        cuts = np.cumsum([row.num_draws for row in rows])[:-1]
        return [
            RowResult(draw_row(own, row), self._scored(row, hidden[piece.first :]))
            for row, piece, own in zip(rows, pieces, np.split(logits, cuts), strict=True)
        ]

    def _scored(self, row: Row, hidden: Tensor) -> tuple[TokenLogprob, ...]:
        """hidden: (at least as many as scored, hidden), from the row's first token on."""
        top, scored = row.params.prompt_logprobs or 0, []
        for first in range(0, len(row.scored_ids), SCORED_AT_ONCE):
            ids = row.scored_ids[first : first + SCORED_AT_ONCE]
            logits = self._decoder.logits(hidden[first : first + len(ids)])
            scored += [score(own, token, top) for own, token in zip(logits, ids, strict=True)]
        return tuple(scored)

    def _spans(self, rows: Sequence[Row], pieces: Sequence[Piece]) -> list[AdapterSpan]:
        """Neighbouring rows with the same adapter, as one span of the flat matrix."""
        spans: list[AdapterSpan] = []
        for row, piece in zip(rows, pieces, strict=True):
            if row.adapter is None:
                continue
            assert isinstance(row.adapter, AdapterWeights | TensorAdapter)
            weights, last = self._tensors(row.adapter), piece.first + piece.count
            if spans and spans[-1].weights is weights:
                spans[-1] = AdapterSpan(spans[-1].first, last, weights)
            else:
                spans.append(AdapterSpan(piece.first, last, weights))
        return spans

    def _tensors(self, adapter: AdapterWeights | TensorAdapter) -> LoraTensors:
        if isinstance(adapter, TensorAdapter):
            return adapter.tensors
        tensors = self._adapters.get(adapter)
        if tensors is None:
            tensors = self._adapters[adapter] = _tensors_of(adapter)
        return tensors


def _tensors_of(adapter: AdapterWeights) -> LoraTensors:
    return {
        place: (float_tensor(pair.a), float_tensor(pair.b), pair.scaling)
        for place, pair in adapter.pairs.items()
    }


def _adapter_key(row: Row) -> str:
    return "" if row.adapter is None else row.adapter.key


def _pieces(rows: Sequence[Row], block_size: int) -> list[Piece]:
    pieces, first = [], 0
    for row in rows:
        count = len(row.token_ids)
        used = -(-(row.start + count) // block_size)
        blocks = torch.tensor(row.block_ids[:used], dtype=torch.long)
        pieces.append(Piece(first, count, row.start, blocks))
        first += count
    return pieces
