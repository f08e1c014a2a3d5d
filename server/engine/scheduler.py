"""Who computes what next. Pure Python over plain data: it knows no tensors, no threads and no text.

Policy: first come, first served. A sequence is admitted when a slot is free and its whole possible length fits the
token budget of the KV cache, so that nothing admitted ever has to be thrown out. In every step all decoding rows
advance by one token; prompts fill what is left of the step's token limit, oldest first, in pieces, so that a long
prompt slows the running streams by at most one piece per token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from server.engine.sequence import Sequence
from server.step import Batch, Row, Sampled
from server.types import FinishReason


@dataclass(frozen=True, slots=True)
class Limits:
    """max_running: sequences per step. max_step_tokens: tokens per step. cache_tokens: KV positions in total."""

    max_running: int
    max_step_tokens: int
    cache_tokens: int

    def __post_init__(self) -> None:
        if min(self.max_running, self.max_step_tokens, self.cache_tokens) < 1:
            raise ValueError(f"every limit must be at least 1: {self}")
        if self.max_step_tokens < self.max_running:
            raise ValueError("max_step_tokens must not be below max_running, or a row could starve")


class Scheduler:
    """Sequences wait, run, and leave. Accounting only; the tensors are the runner's."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._free_slots = list(range(limits.max_running - 1, -1, -1))
        self._reserved_tokens = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def reserved_tokens(self) -> int:
        return self._reserved_tokens

    def add(self, sequence: Sequence) -> None:
        """Raises ValueError if the sequence could never run (the caller checks lengths before)."""
        if sequence.capacity > self.limits.cache_tokens:
            raise ValueError(f"needs {sequence.capacity} of {self.limits.cache_tokens} positions")
        self._waiting.append(sequence)

    def next_batch(self) -> Batch | None:
        """The rows of the next step, or None if there is nothing to do."""
        self._admit()
        budget = self.limits.max_step_tokens
        rows = []
        for sequence in self._running:
            if not sequence.is_prefilling:
                rows.append(_row(sequence, (sequence.output_ids[-1],), samples=True))
                budget -= 1
        for sequence in self._running:
            if sequence.is_prefilling and budget > 0:
                end = min(sequence.num_computed + budget, len(sequence.prompt_ids))
                piece = sequence.prompt_ids[sequence.num_computed : end]
                rows.append(_row(sequence, piece, samples=end == len(sequence.prompt_ids)))
                budget -= len(piece)
        return Batch(tuple(rows)) if rows else None

    def commit(self, batch: Batch, sampled: Iterable[Sampled | None]) -> list[tuple[Sequence, str]]:
        """Take a step's results. Returns each sequence that drew a token, with the text to show.

        Finished sequences have left when this returns; their slots are free for the next batch.
        """
        by_slot = {sequence.slot: sequence for sequence in self._running}
        advanced = []
        for row, token in zip(batch.rows, sampled, strict=True):
            sequence = by_slot[row.slot]
            if sequence.is_prefilling:
                sequence.num_computed += len(row.token_ids)
            if token is not None:
                advanced.append((sequence, sequence.append(token.token_id)))
        for sequence, _ in advanced:
            if sequence.is_finished:
                self._leave(sequence)
        return advanced

    def remove(self, request_id: str) -> list[Sequence]:
        """Take all sequences of a request out, wherever they are (slot is -1 for those that only waited)."""
        waiting = [s for s in self._waiting if s.request_id == request_id]
        running = [s for s in self._running if s.request_id == request_id]
        self._waiting = deque(s for s in self._waiting if s.request_id != request_id)
        for sequence in running:
            self._leave(sequence)
        for sequence in waiting + running:
            sequence.finish_reason = FinishReason.CANCELLED
        return waiting + running

    def has_request(self, request_id: str) -> bool:
        return any(s.request_id == request_id for s in (*self._running, *self._waiting))

    def requests_of(self, batch: Batch) -> set[str]:
        slots = {row.slot for row in batch.rows}
        return {s.request_id for s in self._running if s.slot in slots}

    def _admit(self) -> None:
        while self._waiting and self._free_slots:
            capacity = self._waiting[0].capacity
            if self._reserved_tokens + capacity > self.limits.cache_tokens:
                return  # strictly in order: letting smaller ones pass could starve this one
            sequence = self._waiting.popleft()
            sequence.slot = self._free_slots.pop()
            self._reserved_tokens += capacity
            self._running.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._reserved_tokens -= sequence.capacity


def _row(sequence: Sequence, token_ids: tuple[int, ...], *, samples: bool) -> Row:
    drawn = len(sequence.output_ids)
    start = (
        sequence.num_computed if sequence.is_prefilling else len(sequence.prompt_ids) + drawn - 1
    )
    return Row(
        slot=sequence.slot,
        token_ids=token_ids,
        start=start,
        capacity=sequence.capacity,
        samples=samples,
        params=sequence.params,
        seed=sequence.seed,
        draw=drawn,
        adapter=sequence.adapter,
    )
