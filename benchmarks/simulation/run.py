"""Discrete events: questions arrive, steps end. One clock for all replicas; nothing waits for real time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles

from benchmarks.simulation.replica import Hardware, Replica
from benchmarks.simulation.routing import Router
from benchmarks.simulation.traffic import Conversation
from server.types import Failed, Finished, PromptScored


@dataclass(slots=True)
class _Open:
    """A conversation under way. context: all that was said. turn: the number of the one that is asked."""

    conversation: Conversation
    context: tuple[int, ...]
    turn: int = 0
    asked: float = 0.0
    replica: int = -1
    has_begun: bool = False


@dataclass(slots=True)
class Outcome:
    """Seconds of simulated time. One entry per request in first_tokens; finished counts requests by conversation.

    Rates and busy_share are of the `window` in which conversations begin: after it there is only the end of the last
    ones. Requests and their tokens count where they finish.
    """

    replicas: int
    first_tokens: list[float] = field(default_factory=list)
    finished: dict[tuple[int, int], int] = field(default_factory=dict)
    generated: int = 0
    busy_seconds: float = 0.0
    window: float = 0.0
    finished_in_window: int = 0
    generated_in_window: int = 0
    busy_in_window: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0

    @property
    def requests(self) -> int:
        return len(self.first_tokens)

    @property
    def requests_per_second(self) -> float:
        return self.finished_in_window / self.window

    @property
    def tokens_per_second(self) -> float:
        return self.generated_in_window / self.window

    @property
    def hit_share(self) -> float:
        return self.cached_tokens / max(1, self.prompt_tokens)

    @property
    def busy_share(self) -> float:
        return self.busy_in_window / (self.replicas * self.window)

    def first_token(self, percent: int) -> float:
        """A percentile of the seconds from question to first token."""
        return quantiles(self.first_tokens, n=100, method="inclusive")[percent - 1]


def simulate(
    hardware: Hardware, router: Router, conversations: Sequence[Conversation], replicas: int
) -> Outcome:
    """Plays all conversations, at least one, to their end."""
    fleet = [Replica(hardware) for _ in range(replicas)]
    outstanding = [0] * replicas
    outcome = Outcome(replicas, window=max(talk.begins for talk in conversations))
    talks: dict[str, _Open] = {}
    order = itertools.count()  # of events at one moment
    # (moment, order, conversation that asks or None, replica whose step ends)
    events: list[tuple[float, int, str | None, int]] = []

    def schedule(moment: float, name: str | None, replica: int) -> None:
        heapq.heappush(events, (moment, next(order), name, replica))

    def begin(number: int, now: float) -> None:
        seconds = fleet[number].begin_step()
        if seconds is not None:
            outcome.busy_in_window += min(seconds, max(0.0, outcome.window - now))
            schedule(now + seconds, None, number)

    for conversation in conversations:
        talks[str(conversation.number)] = _Open(conversation, conversation.system)
        schedule(conversation.begins, str(conversation.number), -1)
    while events:
        now, _, name, number = heapq.heappop(events)
        if name is not None:
            talk = talks[name]
            turn = talk.conversation.turns[talk.turn]
            talk.context += turn.question
            number = router.choose(talk.conversation.number, talk.context, outstanding)
            talk.asked, talk.replica, talk.has_begun = now, number, False
            outstanding[number] += 1
            fleet[number].add(name, talk.context, turn.answer_tokens)
            if not fleet[number].is_computing:
                begin(number, now)
            continue
        for sequence, event in fleet[number].end_step():
            if isinstance(event, Failed):
                raise RuntimeError("a simulated step failed") from event.error
            if isinstance(event, PromptScored):
                continue
            talk = talks[sequence.request_id]
            if not talk.has_begun:
                talk.has_begun = True
                outcome.first_tokens.append(now - talk.asked)
            if isinstance(event, Finished):
                outstanding[number] -= 1
                outcome.generated += event.completion_tokens
                if now <= outcome.window:
                    outcome.finished_in_window += 1
                    outcome.generated_in_window += event.completion_tokens
                key = (talk.conversation.number, talk.turn)
                outcome.finished[key] = outcome.finished.get(key, 0) + 1
                talk.context += tuple(sequence.output_ids)
                talk.turn += 1
                if talk.turn < len(talk.conversation.turns):
                    think = talk.conversation.turns[talk.turn].think_seconds
                    schedule(now + think, sequence.request_id, -1)
                else:
                    del talks[sequence.request_id]
        begin(number, now)
    for replica in fleet:
        outcome.busy_seconds += replica.busy_seconds
        outcome.prompt_tokens += replica.stats.prefix_queries
        outcome.cached_tokens += replica.stats.prefix_hits
        outcome.preemptions += replica.stats.preemptions
    return outcome


def router_chance(seed: int) -> random.Random:
    """A router's own random numbers, so that they do not shift the traffic's."""
    return random.Random(f"router {seed}")
