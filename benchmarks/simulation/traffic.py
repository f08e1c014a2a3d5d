"""SIMULATED traffic: conversations of several turns under shared system prompts, all drawn before a run.

So every routing policy gets the same conversations at the same moments. Token ids stand for text: equal ids where
text is equal, and no id comes twice by chance.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

LENGTHS = json.loads(Path(__file__).with_name("lengths.json").read_text("utf-8"))
MAX_QUESTION, MAX_ANSWER = 1200, 400  # tokens; a log-normal has no end
MAX_CONTEXT = 6000
Arrivals = Literal["poisson", "bursty"]
BURST = 8  # conversations that begin together, on average


@dataclass(frozen=True, slots=True)
class Scenario:
    """system_prompts: how many there are, each of system_tokens; the k-th most popular is used in proportion to 1/k.

    mean_turns: of a conversation, geometric. think_seconds: mean, exponential.
    """

    name: str
    system_prompts: int
    system_tokens: int
    mean_turns: float
    think_seconds: float = 20.0


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("single", 0, 0, 1.0),
        Scenario("chat", 1, 200, 2 * LENGTHS["mean_turns"]),
        Scenario("tenants", 500, 1500, LENGTHS["mean_turns"]),
    )
}


@dataclass(frozen=True, slots=True)
class Turn:
    """think_seconds: from the end of the answer before; 0 for the first."""

    question: tuple[int, ...]
    answer_tokens: int
    think_seconds: float


@dataclass(frozen=True, slots=True)
class Conversation:
    """system: token ids that others share."""

    number: int
    begins: float
    system: tuple[int, ...]
    turns: tuple[Turn, ...]


def conversations(
    scenario: Scenario, *, requests: int, per_second: float, arrivals: Arrivals, seed: int
) -> list[Conversation]:
    """Conversations with at least so many requests; `per_second` of them begin on average, in order of time."""
    chance = random.Random(seed)
    fresh = _TokenIds()
    prompts = [fresh(scenario.system_tokens) for _ in range(scenario.system_prompts)]
    popularity = list(accumulate(1 / rank for rank in range(1, len(prompts) + 1)))
    made: list[Conversation] = []
    count, now = 0, 0.0
    begins = _moments(chance, per_second, arrivals)
    while count < requests:
        now = next(begins)
        system = chance.choices(prompts, cum_weights=popularity)[0] if prompts else ()
        turns: list[Turn] = []
        context = len(system)
        more = True
        while more:
            name = "later_question" if turns else "first_question"
            question = fresh(_length(chance, name, MAX_QUESTION))
            answer = _length(chance, "answer", MAX_ANSWER)
            context += len(question) + answer
            if turns and context > MAX_CONTEXT:
                break
            think = chance.expovariate(1 / scenario.think_seconds) if turns else 0.0
            turns.append(Turn(question, answer, think))
            more = chance.random() < 1 - 1 / scenario.mean_turns
        count += len(turns)
        made.append(Conversation(len(made), now, system, tuple(turns)))
    return made


def _moments(chance: random.Random, per_second: float, arrivals: Arrivals) -> Iterator[float]:
    """Poisson: independent. Bursty: bursts come as a Poisson process, their sizes are geometric."""
    now = 0.0
    size = BURST if arrivals == "bursty" else 1
    while True:
        now += chance.expovariate(per_second / size)
        yield now
        while size > 1 and chance.random() < 1 - 1 / size:
            yield now


def _length(chance: random.Random, name: str, most: int) -> int:
    drawn = math.exp(chance.gauss(LENGTHS[name]["mu"], LENGTHS[name]["sigma"]))
    return min(most, max(2, round(drawn)))


class _TokenIds:
    """Ids that were never given out before."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, count: int) -> tuple[int, ...]:
        first, self._next = self._next, self._next + count
        return tuple(range(first, self._next))
