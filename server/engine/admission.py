"""Who may join the queue: counts answers and prompt tokens, in all and by tenant. It knows no time but the drain rates.

The engine calls it under its own lock.
"""

from __future__ import annotations

from collections import Counter

from server.engine.drain_rate import DrainRate
from server.errors import OverloadedError

# Answers that a tenant may have unfinished when the others have filled the queue.
RESERVED_ANSWERS = 8


class Admission:
    """max_unfinished: answers that run or wait. max_waiting_tokens: of prompts that wait to be computed.

    Both are for all tenants together; but whoever has next to nothing in the queue is let in though others have filled
    it: up to RESERVED_ANSWERS answers, and one prompt of any length. So the bounds grow with the number of tenants.
    """

    def __init__(self, max_unfinished: int, max_waiting_tokens: int) -> None:
        self._max_unfinished = max_unfinished
        self._max_waiting_tokens = max_waiting_tokens
        self._unfinished: Counter[str] = Counter()
        self._waiting_tokens: Counter[str] = Counter()
        self._answer_rate = DrainRate()
        self._prompt_rate = DrainRate()

    @property
    def unfinished(self) -> int:
        return self._unfinished.total()

    @property
    def waiting_tokens(self) -> int:
        return self._waiting_tokens.total()

    def check(self, tenant: str, num_answers: int, prompt_tokens: int) -> None:
        """Raises OverloadedError if a request of so many answers to one prompt must come back later."""
        excess = self.unfinished + num_answers - self._max_unfinished
        own = self._unfinished[tenant] + num_answers
        if excess > 0 and own > min(RESERVED_ANSWERS, self._max_unfinished):
            seconds = self._answer_rate.seconds_until(excess)
            raise OverloadedError(
                f"The server is busy: {self.unfinished} answers are running or waiting, and"
                f" {self._max_unfinished} is its limit. Try again in {seconds} s.",
                retry_after=seconds,
            )
        excess = self.waiting_tokens + prompt_tokens - self._max_waiting_tokens
        if excess > 0 and self._waiting_tokens[tenant] > 0:
            seconds = self._prompt_rate.seconds_until(min(excess, self.waiting_tokens))
            raise OverloadedError(
                f"The server is busy: prompts of {self.waiting_tokens} tokens are waiting, and"
                f" {self._max_waiting_tokens} is its limit. Try again in {seconds} s.",
                retry_after=seconds,
            )

    def enter(self, tenant: str, num_answers: int, prompt_tokens: int) -> None:
        self._unfinished[tenant] += num_answers
        self._waiting_tokens[tenant] += prompt_tokens

    def dequeue(self, tenant: str, prompt_tokens: int) -> None:
        """A prompt waits no more."""
        self._waiting_tokens[tenant] -= prompt_tokens
        if not self._waiting_tokens[tenant]:
            del self._waiting_tokens[tenant]

    def leave(self, tenant: str, num_answers: int = 1) -> None:
        self._unfinished[tenant] -= num_answers
        if not self._unfinished[tenant]:
            del self._unfinished[tenant]

    def clear(self) -> None:
        """Nobody is here any more."""
        self._unfinished.clear()
        self._waiting_tokens.clear()

    def observe(self, num_ended: int, prompt_tokens: int, step_seconds: float) -> None:
        """A step took so long; with it so many answers ended, and prompts of so many tokens ceased to wait."""
        self._answer_rate.observe(num_ended, step_seconds)
        self._prompt_rate.observe(prompt_tokens, step_seconds)
