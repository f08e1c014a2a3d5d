"""Who computes what next. Pure Python over plain data: it knows no tensors, no threads and no text.

Policy: in every step each decoding row advances; prompts fill what is left of the step's tokens, in pieces. Their
turns go to the tenant (an API key) for whom least was computed, and within one to who came first; without keys all are
one tenant. Whoever's turn it is and finds no KV blocks holds up all that wait, so that smaller ones cannot starve it.
KV blocks are given out as text grows; when there are none left, the running sequence that was let in last goes back to
wait, before all others of its tenant, and what it had computed stays in the prefix cache while there is room. The one
that was let in first is never sent back, so everything ends.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass

from server.engine.blocks import BlockPool
from server.engine.drafts import MAX_DRAFTS, Drafter, break_even
from server.engine.fair_share import FairShare
from server.engine.rows import decoding_row, prefill_row
from server.engine.sequence import Sequence
from server.errors import EngineError
from server.step import Batch, BlockCopy, Row, RowResult
from server.types import EngineStats, Event, Failed, FinishReason


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one step may hold.

    max_running: sequences that run at the same time.
    max_step_tokens: tokens per step.
    prefill_tokens_beside_decoding: prompt tokens per step while answers are being written: what a stream may be
        held up by a prompt that is not its own.
    draft_tokens_per_step: tokens up to which a step of decoding rows is filled with drafts; 0 turns drafts off.
    """

    max_running: int
    max_step_tokens: int
    prefill_tokens_beside_decoding: int = 64
    draft_tokens_per_step: int = 8

    def __post_init__(self) -> None:
        least = min(self.max_running, self.max_step_tokens, self.prefill_tokens_beside_decoding)
        if least < 1 or self.draft_tokens_per_step < 0:
            raise ValueError(f"limits must be at least 1, and drafts at least 0: {self}")
        if self.max_step_tokens < self.max_running:
            raise ValueError("max_step_tokens must not be below max_running, or a row could starve")


class Scheduler:
    """Sequences wait, run, and leave. Accounting only; the tensors are the runner's."""

    def __init__(self, limits: Limits, *, num_blocks: int, block_size: int) -> None:
        self.limits = limits
        self.pool = BlockPool(num_blocks, block_size)
        self._shares = FairShare()
        self._arrivals = 0
        self._waiting: list[Sequence] = []  # in order of arrival
        self._running: list[Sequence] = []  # in the order in which they were let in
        self._in_step: list[Sequence] = []  # of the rows that are being computed
        self._refused: tuple[Sequence, int] | None = (
            None  # for want of blocks, and how many were to be had
        )
        self._steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._drafted = 0
        self._drafts_accepted = 0
        self._preemptions = 0
        self._dequeued: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def stats(self) -> EngineStats:
        """prompt_tokens counts whole prompts, cached parts too, when they are first admitted."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks_used=self.pool.num_used,
            blocks_cached=self.pool.num_cached,
            blocks_total=self.pool.num_blocks,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            drafted=self._drafted,
            drafts_accepted=self._drafts_accepted,
            preemptions=self._preemptions,
        )

    def add(self, sequence: Sequence) -> None:
        """Raises ValueError if the sequence could never run (the caller checks lengths before)."""
        needed = self.pool.blocks_for(sequence.max_positions)
        if needed > self.pool.num_blocks:
            raise ValueError(f"needs {needed} of {self.pool.num_blocks} blocks")
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.append(sequence)
        self._shares.enter(sequence.tenant)

    def take_dequeued(self) -> list[Sequence]:
        """Those whose prompts ceased to wait since the last call: let in, or removed before that. Each comes once."""
        dequeued, self._dequeued = self._dequeued, []
        return dequeued

    def next_batch(self) -> Batch | None:
        """The rows of the next step, or None if there is nothing to do."""
        if not self.has_work:
            return None
        may_admit = self._make_room()
        decoding = [s for s in self._running if s.is_decoding]
        copies: list[BlockCopy] = []
        pieces = self._prefill(len(decoding), copies, may_admit=may_admit)
        drafts = {} if pieces else self._draft(decoding)
        rows = [decoding_row(sequence, drafts.get(sequence, ())) for sequence in decoding]
        self._in_step = decoding + [sequence for sequence, _ in pieces]
        rows += [row for _, row in pieces]
        if not rows:
            raise RuntimeError("sequences wait, and none of them can run")
        return Batch(tuple(rows), tuple(copies))

    def commit(self, batch: Batch, results: list[RowResult]) -> list[tuple[Sequence, Event]]:
        """Take the results of the last batch, that fit it. Returns what is to be said, in order.

        Finished sequences have left when this returns. One whose own text or grammar fails gets Failed; it is still
        there, for the caller to remove with its request.
        """
        self._steps += 1
        said: list[tuple[Sequence, Event]] = []
        for sequence, row, result in zip(self._in_step, batch.rows, results, strict=True):
            drawn_before = len(sequence.output_ids)
            computed = row.start + len(row.token_ids)
            try:
                if row.scored_ids:
                    sequence.take_scored(row.start, result.scored)
                if not sequence.is_prompt_computed and computed >= len(sequence.prompt_ids):
                    said += [(sequence, event) for event in sequence.finish_prompt()]
                if result.sampled:
                    said.append((sequence, sequence.take(result.sampled)))
            except Exception as error:
                failure = EngineError(f"This answer cannot go on ({type(error).__name__}).")
                failure.__cause__ = error
                said.append((sequence, Failed(failure)))
                continue
            self._generation_tokens += len(sequence.output_ids) - drawn_before
            if row.num_drafts:
                right = len(result.sampled) - 1
                computed -= row.num_drafts - right
                self._learn(sequence, row.num_drafts, right)
            assert sequence.table is not None
            self._shares.charge(sequence.tenant, computed - row.start)
            # Of drafts that were right, those behind the answer's end are not part of it.
            self.pool.advance(sequence.table, min(computed, len(sequence.token_ids)))
            if sequence.is_finished:
                self._leave(sequence)
                self._shares.leave(sequence.tenant)
        self._in_step = []
        return said

    def remove(self, request_id: str, *, keep_tails: bool = True) -> list[Sequence]:
        """Take all sequences of a request out, wherever they are.

        keep_tails: False after a step that failed: their last blocks may hold anything.
        """
        removed = [s for s in self._waiting + self._running if s.request_id == request_id]
        self._waiting = [s for s in self._waiting if s.request_id != request_id]
        # Whoever left is referred to no more: its adapter may have to leave the memory.
        self._in_step = [s for s in self._in_step if s.request_id != request_id]
        if self._refused is not None and self._refused[0].request_id == request_id:
            self._refused = None
        for sequence in removed:
            sequence.finish_reason = FinishReason.CANCELLED
            if sequence.table is not None:
                self._leave(sequence, keep_tail=keep_tails)
            self._dequeue(sequence)
            self._shares.leave(sequence.tenant)
        return removed

    def has_request(self, request_id: str) -> bool:
        return any(s.request_id == request_id for s in (*self._running, *self._waiting))

    def requests_in_step(self) -> set[str]:
        """The requests with a row in the batch that is being computed."""
        return {s.request_id for s in self._in_step}

    def _make_room(self) -> bool:
        """Give each decoding row the block of its next position. False if that cost another its place."""
        preempted = False
        for (
            sequence
        ) in self._running.copy():  # the first let in first: no row that has room loses it
            while sequence.is_decoding:
                assert sequence.table is not None
                if self.pool.grow(sequence.table, len(sequence.token_ids)):
                    break
                self._preempt(self._running[-1])
                preempted = True
        return not preempted

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        insort(self._waiting, sequence, key=_arrival)
        self._preemptions += 1

    def _leave(self, sequence: Sequence, *, keep_tail: bool = True) -> None:
        assert sequence.table is not None
        self.pool.close(sequence.table, keep_tail=keep_tail)
        sequence.table = None
        self._running.remove(sequence)

    def _prefill(
        self, num_decoding: int, copies: list[BlockCopy], *, may_admit: bool
    ) -> list[tuple[Sequence, Row]]:
        budget = self.limits.max_step_tokens - num_decoding
        if num_decoding:
            budget = min(budget, self.limits.prefill_tokens_beside_decoding)
        pieces: list[tuple[Sequence, Row]] = []
        queues = self._prompts(may_admit=may_admit)
        # What this step computes counts at once: else one tenant could take all free places in it.
        served = {tenant: self._shares.served(tenant) for tenant in queues}
        while budget and queues:
            tenant = min(queues, key=lambda t: (served[t], queues[t][0].arrival))
            queue = queues[tenant]
            sequence = queue[0]
            if sequence.table is None and not self._admit(sequence, copies):
                # Strictly in turn: letting smaller ones pass could starve this one.
                queues = _running_only(queues)
                continue
            pieces.append((sequence, prefill_row(sequence, budget)))
            num_tokens = len(pieces[-1][1].token_ids)
            budget -= num_tokens
            served[tenant] += num_tokens
            queue.popleft()
            if len(self._running) >= self.limits.max_running:
                queues = _running_only(queues)
            elif not queue:
                del queues[tenant]
        return pieces

    def _prompts(self, *, may_admit: bool) -> dict[str, deque[Sequence]]:
        """By tenant: those whose prompt is being computed, then those that wait and may be let in.

        Only such are let in as get a row at once: a copy belongs to a row, and fails with it.
        """
        queues: dict[str, deque[Sequence]] = {}
        candidates = [sequence for sequence in self._running if not sequence.is_decoding]
        if may_admit and len(self._running) < self.limits.max_running:
            # One whose leader is not done finds its prompt computed soon; others need not wait for that.
            candidates += [
                s for s in self._waiting if s.leader is None or s.leader.is_prompt_computed
            ]
        for sequence in candidates:
            queues.setdefault(sequence.tenant, deque()).append(sequence)
        return queues

    def _admit(self, sequence: Sequence, copies: list[BlockCopy]) -> bool:
        # One block for each that runs: else they would soon throw each other out.
        headroom = len(self._running)
        spare = self.pool.num_available - headroom
        if self._refused is not None and self._refused[0] is sequence and spare <= self._refused[1]:
            return (
                False  # as it was the last time; looking a long prompt up in every step would cost
            )
        if sequence.leader is not None and sequence.is_scoring:
            sequence.scored = sequence.leader.scored.copy()
        reuse = sequence.num_reusable
        opened = self.pool.open(
            sequence.namespace, sequence.token_ids, reuse=reuse, headroom=headroom
        )
        if opened is None:
            self._refused = sequence, spare
            return False
        self._refused = None
        sequence.table, copy = opened
        if copy is not None:
            copies.append(copy)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.table.num_computed
            self._prompt_tokens += len(sequence.prompt_ids)
            self._dequeue(sequence)
            if reuse:
                self._prefix_queries += len(sequence.prompt_ids)
                self._prefix_hits += sequence.cached_tokens
        self._waiting.remove(sequence)
        self._running.append(sequence)
        return True

    def _dequeue(self, sequence: Sequence) -> None:
        """Its prompt waits no more, for the first time."""
        if not sequence.is_dequeued:
            sequence.is_dequeued = True
            self._dequeued.append(sequence)

    def _draft(self, decoding: list[Sequence]) -> dict[Sequence, list[int]]:
        room = min(self.limits.draft_tokens_per_step, self.limits.max_step_tokens) - len(decoding)
        drafts: dict[Sequence, list[int]] = {}
        if room <= 0:
            return drafts
        threshold = break_even(len(decoding))
        for position, sequence in enumerate(decoding):
            # Shared evenly, because a row's first draft is worth more than its second.
            share = -(-room // (len(decoding) - position))
            # The last token needs no computing.
            left = sequence.params.max_tokens - len(sequence.output_ids) - 1
            limit = min(share, left, MAX_DRAFTS)
            if limit <= 0 or sequence.constraint is not None:
                continue
            if sequence.drafter is None:
                sequence.drafter = Drafter(sequence.token_ids)
            guessed = sequence.drafter.propose(limit, threshold)
            assert sequence.table is not None
            # Drafts take a block that is to be had, but throw nobody out.
            if guessed and self.pool.grow(sequence.table, len(sequence.token_ids) + len(guessed)):
                drafts[sequence] = guessed
                room -= len(guessed)
        return drafts

    def _learn(self, sequence: Sequence, drafted: int, right: int) -> None:
        assert sequence.drafter is not None
        sequence.drafter.learn(drafted, right)
        self._drafted += drafted
        self._drafts_accepted += right


def _running_only(queues: dict[str, deque[Sequence]]) -> dict[str, deque[Sequence]]:
    """Without those that wait."""
    running = {t: deque(s for s in queue if s.table is not None) for t, queue in queues.items()}
    return {tenant: queue for tenant, queue in running.items() if queue}


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
