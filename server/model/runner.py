"""Batch -> tensors -> forward -> tokens. The engine's Runner; lives in the engine's thread."""

from __future__ import annotations

import torch

from server.model.decoder import AdapterSpan, LlamaDecoder, Piece
from server.model.kv_cache import KVCache
from server.model.lora import AdapterWeights
from server.model.sampler import sample
from server.step import Batch, Row, Sampled


class ModelRunner:
    """Keeps what a sequence needs between steps: its cache and its random generator, by slot."""

    def __init__(self, decoder: LlamaDecoder) -> None:
        self._decoder = decoder
        self._cache = KVCache(decoder.config)
        self._generators: dict[int, torch.Generator] = {}

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[Sampled | None]:
        # Rows of one adapter lie side by side, so that it is applied once per module and not once per row.
        order = sorted(range(len(batch.rows)), key=lambda i: _adapter_key(batch.rows[i]))
        rows = [batch.rows[i] for i in order]
        pieces = self._pieces(rows)
        ends = [piece.first + piece.count - 1 for piece in pieces]
        sampling = [i for i, row in enumerate(rows) if row.samples]
        logits = self._decoder.forward(
            token_ids=torch.tensor([t for row in rows for t in row.token_ids]),
            positions=torch.cat([torch.arange(p.start, p.start + p.count) for p in pieces]),
            pieces=pieces,
            spans=_adapter_spans(rows, pieces),
            output_rows=torch.tensor([ends[i] for i in sampling], dtype=torch.long),
        )
        results: list[Sampled | None] = [None] * len(rows)
        for i, row_logits in zip(sampling, logits, strict=True):
            token_id = sample(row_logits, rows[i].params, self._generator(rows[i]))
            results[order[i]] = Sampled(token_id)
        return results

    def release(self, slot: int) -> None:
        self._cache.release(slot)
        self._generators.pop(slot, None)

    @property
    def num_slots_in_use(self) -> int:
        return len(self._cache)

    def _pieces(self, rows: list[Row]) -> list[Piece]:
        pieces, first = [], 0
        for row in rows:
            cache = self._cache.slot(row.slot, row.capacity)
            pieces.append(Piece(first, len(row.token_ids), row.start, cache))
            first += len(row.token_ids)
        return pieces

    def _generator(self, row: Row) -> torch.Generator:
        generator = self._generators.get(row.slot)
        if generator is None:
            generator = self._generators[row.slot] = torch.Generator().manual_seed(row.seed)
        return generator


def _adapter_key(row: Row) -> str:
    return "" if row.adapter is None else row.adapter.key


def _adapter_spans(rows: list[Row], pieces: list[Piece]) -> list[AdapterSpan]:
    """Neighbouring rows with the same adapter, as one span of the flat matrix."""
    spans: list[AdapterSpan] = []
    for row, piece in zip(rows, pieces, strict=True):
        if row.adapter is None:
            continue
        assert isinstance(row.adapter, AdapterWeights)
        last = piece.first + piece.count
        if spans and spans[-1].weights is row.adapter:
            spans[-1] = AdapterSpan(spans[-1].first, last, row.adapter)
        else:
            spans.append(AdapterSpan(piece.first, last, row.adapter))
    return spans
