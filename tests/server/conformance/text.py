"""Drives a runner as an engine would: one text, its blocks, its rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.model.lora import AdapterWeights
from server.step import Batch, Row, RowResult, Runner
from server.types import SamplingParams, TokenLogprob

# More alternatives than any vocabulary here has: the whole distribution.
EVERYTHING = 100_000


class Blocks:
    """Hands out a runner's blocks, in an order that nothing may depend on."""

    def __init__(self, runner: Runner, seed: int = 0) -> None:
        self._size = runner.block_size
        self._free = list(range(runner.num_blocks))
        random.Random(seed).shuffle(self._free)

    def take(self, count: int = 1) -> list[int]:
        return [self._free.pop() for _ in range(count)]

    def cover(self, blocks: list[int], positions: int) -> None:
        """Extend blocks until it covers so many positions."""
        blocks += self.take(max(0, -(-positions // self._size) - len(blocks)))


@dataclass
class Text:
    """One sequence. results: what was said about it, in order."""

    blocks: Blocks
    prompt: list[int]
    adapter: AdapterWeights | None = None
    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0))
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    block_ids: list[int] = field(default_factory=list)
    done: int = 0
    output: list[int] = field(default_factory=list)
    results: list[RowResult] = field(default_factory=list)

    def row(self, count: int = EVERYTHING, drafts: Sequence[int] = ()) -> Row:
        """The next piece: at most count of the tokens not yet computed, and drafts after the last."""
        known = [*self.prompt, *self.output]
        tokens = known[self.done : self.done + count]
        last = self.done + len(tokens) == len(known)
        scored: list[int] = []
        if self.params.prompt_logprobs is not None:
            scored = self.prompt[self.done + 1 : self.done + len(tokens) + 1]
        assert last or not drafts
        self.blocks.cover(self.block_ids, self.done + len(tokens) + len(drafts))
        return Row(
            token_ids=(*tokens, *drafts),
            start=self.done,
            block_ids=tuple(self.block_ids),
            num_draws=1 + len(drafts) if last else 0,
            params=self.params,
            seed=self.seed,
            draw=len(self.output),
            adapter=self.adapter,
            prompt_ids=tuple(self.prompt),
            output_ids=tuple(self.output),
            scored_ids=tuple(scored),
            **self.extra,
        )

    def take(self, row: Row, result: RowResult) -> None:
        assert len(result.scored) == len(row.scored_ids)
        assert bool(result.sampled) == bool(row.num_draws)
        # A draft's keys and values are good if the draft was right.
        self.done += len(row.token_ids) - row.num_drafts + max(0, len(result.sampled) - 1)
        self.output += [s.token_id for s in result.sampled]
        self.results.append(result)

    @property
    def scored(self) -> list[TokenLogprob]:
        return [entry for result in self.results for entry in result.scored]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        said = [s.logprob for result in self.results for s in result.sampled]
        return [entry for entry in said if entry is not None]


def step(runner: Runner, texts: Sequence[Text], rows: Sequence[Row], **batch: Any) -> None:
    results = runner.step(Batch(tuple(rows), **batch))
    assert len(results) == len(rows)
    for text, row, result in zip(texts, rows, results, strict=True):
        text.take(row, result)


def generate(runner: Runner, texts: Sequence[Text], count: int) -> None:
    """All texts together until each has count tokens."""
    while running := [t for t in texts if len(t.output) < count]:
        step(runner, running, [t.row() for t in running])


def distribution(said: TokenLogprob) -> NDArray[np.float64]:
    """(vocab,) natural log-probabilities."""
    ids, values = zip(*said.top, strict=True)
    out = np.full(len(ids), np.nan)
    out[list(ids)] = values
    assert out[said.token_id] == said.logprob
    return out


def everything(**params: Any) -> SamplingParams:
    """Parameters that make the runner tell the whole distribution at every position."""
    defaults: dict[str, Any] = {"temperature": 0, "logprobs": EVERYTHING}
    return SamplingParams(**defaults | {"prompt_logprobs": EVERYTHING} | params)


def distributions(text: Text) -> NDArray[np.float64]:
    """(positions, vocab) of a text computed with `everything`."""
    return np.stack([distribution(said) for said in (*text.scored, *text.logprobs)])


def tokens(count: int, seed: int = 0) -> list[int]:
    chance = random.Random(seed)
    return [chance.randint(3, 255) for _ in range(count)]
