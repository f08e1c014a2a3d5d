"""What the engine hands to the model for one step, and what comes back. Plain data, known to both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.types import AdapterHandle, SamplingParams, TokenConstraint, TokenLogprob


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a step: a piece of its tokens, and whether tokens are drawn after it.

    token_ids: consecutive tokens to compute now; they go to positions start … start+len(token_ids)-1. The last
        num_draws-1 of them may be drafts: guesses, computed together with the token before them.
    block_ids: the sequence's KV blocks, in order of position; position p lies in block_ids[p // block_size].
        Covers all of this step's positions.
    num_draws: after how many of the last positions a token is drawn: 0 for a piece of a prompt that is not its
        last, 1 as a rule, 1 + the number of drafts where there are drafts.
    seed, draw: the sequence's own random numbers; the k-th draw of this row (k from 0) is number draw+k of seed.
    prompt_ids, output_ids: the text so far, for penalties. Drafts are not among output_ids. Not to be kept: the
        engine appends to output_ids after the step.
    banned_ids: tokens that must not be drawn yet (end tokens before min_tokens), for the first
        num_banned_draws draws of this row; not heeded where the constraint allows no others.
    constraint: which tokens a grammar allows now. A row with a constraint has no drafts.
    scored_ids: with prompt logprobs, the known token that follows each position of token_ids (shorter by one in
        the prompt's last piece); empty otherwise.
    """

    token_ids: tuple[int, ...]
    start: int
    block_ids: Sequence[int]
    num_draws: int
    params: SamplingParams
    seed: int
    draw: int
    adapter: AdapterHandle | None
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    banned_ids: Sequence[int] = ()
    num_banned_draws: int = 0
    constraint: TokenConstraint | None = None
    scored_ids: Sequence[int] = ()

    @property
    def num_drafts(self) -> int:
        return max(0, self.num_draws - 1)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy one whole KV block, before anything of the step is computed. Copies run in order."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in any mix: prompt pieces and decoding rows, base and adapters."""

    rows: tuple[Row, ...]
    copies: tuple[BlockCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A drawn token. logprob is None unless the row's params ask for logprobs."""

    token_id: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """sampled: 0 to num_draws tokens. Of a row with drafts, draws end at the first that differs from its draft:

    so len(sampled)-1 drafts were right, and just their keys and values (and the row's first token's) are valid.
    scored: one entry per scored_ids.
    """

    sampled: tuple[Sampled, ...] = ()
    scored: tuple[TokenLogprob, ...] = ()


class Runner(Protocol):
    """The model as the engine sees it. Called from the engine's thread only. It owns the memory of
    num_blocks KV blocks; who uses which block is the engine's to decide."""

    @property
    def block_size(self) -> int:
        """Positions per KV block."""
        ...

    @property
    def num_blocks(self) -> int: ...

    def step(self, batch: Batch) -> list[RowResult]:
        """The copies, then one forward pass, then the draws. One result per row."""
        ...
