"""SIMULATED replica: the real scheduler, block pool and prefix cache; of the model, only how long a step takes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.engine.text import TextStream
from server.sizing.model_cost import ModelCost
from server.sizing.step_time import Machine, StepWork, step_seconds
from server.step import Batch, RowResult, Sampled
from server.types import EngineStats, Event, SamplingParams

# Answers' token ids, far from those of questions.
FIRST_ANSWER_TOKEN = 2**40


@dataclass(frozen=True, slots=True)
class Hardware:
    """What every replica is. limits: of the scheduler, without drafts: random text cannot be guessed."""

    model: ModelCost
    machine: Machine
    limits: Limits
    num_blocks: int
    block_size: int


class Silent:
    """A text decoder that never shows anything: here are tokens and no text."""

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class Replica:
    """Steps are begun and ended by the caller, who keeps the clock."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._scheduler = Scheduler(
            hardware.limits, num_blocks=hardware.num_blocks, block_size=hardware.block_size
        )
        self._batch: Batch | None = None
        self._tokens = itertools.count(FIRST_ANSWER_TOKEN)
        self.busy_seconds = 0.0

    @property
    def is_computing(self) -> bool:
        return self._batch is not None

    @property
    def stats(self) -> EngineStats:
        return self._scheduler.stats

    def add(self, name: str, prompt: tuple[int, ...], answer_tokens: int) -> None:
        """Raises ValueError if it could never run."""
        self._scheduler.add(
            Sequence(
                request_id=name,
                index=0,
                prompt_ids=prompt,
                params=SamplingParams(max_tokens=answer_tokens, ignore_eos=True),
                stop_token_ids=(),
                adapter=None,
                text=TextStream(Silent()),
            )
        )

    def begin_step(self) -> float | None:
        """How many seconds the step takes that begins now; None if there is nothing to do."""
        self._batch = self._scheduler.next_batch()
        if self._batch is None:
            return None
        seconds = step_seconds(self._hardware.model, self._hardware.machine, _work(self._batch))
        self.busy_seconds += seconds
        return seconds

    def end_step(self) -> list[tuple[Sequence, Event]]:
        """What the step that was begun says."""
        assert self._batch is not None
        results = [
            RowResult((Sampled(next(self._tokens)),) if row.num_draws else ())
            for row in self._batch.rows
        ]
        said = self._scheduler.commit(self._batch, results)
        self._scheduler.take_dequeued()
        self._batch = None
        return said


def _work(batch: Batch) -> StepWork:
    drawing = prompt = cache = attended = 0.0
    for row in batch.rows:
        count = len(row.token_ids)
        drawing += row.num_draws
        prompt += count - row.num_draws
        cache += row.start + count
        attended += count * (row.start + count / 2)
    return StepWork(drawing, prompt, cache, attended)
