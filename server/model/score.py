"""Log-probabilities of a short text by a runner, in blocks of its own: the engine's sequences are not touched.

Must run where steps run, between two of them.
"""

from __future__ import annotations

from typing import Protocol

from server.step import Batch, Row, Runner
from server.types import AdapterHandle, SamplingParams


class ScoringRunner(Runner, Protocol):
    """A runner with blocks that the engine does not hand out."""

    @property
    def spare_blocks(self) -> tuple[int, ...]: ...


def score(
    runner: ScoringRunner, adapter: AdapterHandle | None, token_ids: tuple[int, ...]
) -> list[float]:
    """Natural log-probabilities of token_ids[1:], each given the tokens before it. One step of len(token_ids)-1."""
    assert 2 <= len(token_ids) <= len(runner.spare_blocks) * runner.block_size + 1
    row = Row(
        token_ids=token_ids[:-1],
        start=0,
        block_ids=runner.spare_blocks,
        num_draws=0,
        params=SamplingParams(prompt_logprobs=0),
        seed=0,
        draw=0,
        adapter=adapter,
        prompt_ids=token_ids,
        scored_ids=token_ids[1:],
    )
    (result,) = runner.step(Batch((row,)))
    return [told.logprob for told in result.scored]
