"""What the engine hands to the model for one step, and what comes back. Plain data, known to both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from server.types import AdapterHandle, SamplingParams


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a step: a piece of its prompt, or its newest token.

    slot: the sequence's place in the KV cache, its own from admission to release.
    token_ids: tokens to compute now; they go to cache positions start … start+len(token_ids)-1.
    capacity: cache positions this sequence may ever use; constant for a slot's life.
    samples: whether a token is drawn after the last of token_ids (false in all but a prompt's last piece).
    seed: of this sequence's own random generator. draw: how many tokens it has drawn before.
    """

    slot: int
    token_ids: tuple[int, ...]
    start: int
    capacity: int
    samples: bool
    params: SamplingParams
    seed: int
    draw: int
    adapter: AdapterHandle | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in any mix: prompt pieces and decoding rows, base and adapters."""

    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A drawn token."""

    token_id: int


class Runner(Protocol):
    """The model as the engine sees it. Called from the engine's thread only."""

    def step(self, batch: Batch) -> list[Sampled | None]:
        """One forward pass. One entry per row; None where the row does not sample."""
        ...

    def release(self, slot: int) -> None:
        """Forget a slot's cache and generator. Idempotent."""
        ...
