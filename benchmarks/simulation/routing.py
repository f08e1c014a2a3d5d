"""Which replica gets a request. A router sees prompts and how many requests each has to do; never a replica's cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol


class Router(Protocol):
    def choose(self, conversation: int, prompt: tuple[int, ...], outstanding: Sequence[int]) -> int:
        """A replica's number. outstanding: requests that each has and has not finished."""
        ...


class RoundRobin:
    def __init__(self, chance: random.Random) -> None:
        del chance  # it leaves nothing to it
        self._turn = -1

    def choose(self, conversation: int, prompt: tuple[int, ...], outstanding: Sequence[int]) -> int:
        self._turn = (self._turn + 1) % len(outstanding)
        return self._turn


class Random:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def choose(self, conversation: int, prompt: tuple[int, ...], outstanding: Sequence[int]) -> int:
        return self._chance.randrange(len(outstanding))


class TwoChoices:
    """Of two at random the one with less to do (Mitzenmacher 2001, doi:10.1109/71.963420)."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def choose(self, conversation: int, prompt: tuple[int, ...], outstanding: Sequence[int]) -> int:
        one, other = (self._chance.randrange(len(outstanding)) for _ in range(2))
        return one if outstanding[one] <= outstanding[other] else other


class Affinity:
    """A conversation stays where two choices put it first, as with a balancer's cookie."""

    def __init__(self, chance: random.Random) -> None:
        self._first = TwoChoices(chance)
        self._home: dict[int, int] = {}

    def choose(self, conversation: int, prompt: tuple[int, ...], outstanding: Sequence[int]) -> int:
        home = self._home.get(conversation)
        if home is None:
            home = self._first.choose(conversation, prompt, outstanding)
            self._home[conversation] = home
        return home


class PrefixAware:
    """To a replica that was sent the longest beginning of this prompt before, unless it has much more to do.

    The router remembers, for each beginning in whole chunks, the last replicas that got it; what they have thrown
    away since, it does not know. A beginning that is less than a quarter of the prompt decides nothing.
    """

    CHUNK = 128  # tokens
    HOLDERS = 4
    LEAST_SHARE = 0.25
    IMBALANCE = 4  # requests more than the less busy of two others

    def __init__(self, chance: random.Random) -> None:
        self._elsewhere = TwoChoices(chance)
        self._holders: dict[int, list[int]] = {}

    def choose(self, conversation: int, prompt: tuple[int, ...], outstanding: Sequence[int]) -> int:
        beginnings = self._beginnings(prompt)
        chosen = self._elsewhere.choose(conversation, prompt, outstanding)
        for depth in range(len(beginnings), 0, -1):
            if depth * self.CHUNK < self.LEAST_SHARE * len(prompt):
                break
            holders = self._holders.get(beginnings[depth - 1])
            if holders:
                best = min(holders, key=outstanding.__getitem__)
                if outstanding[best] <= outstanding[chosen] + self.IMBALANCE:
                    chosen = best
                break
        for beginning in beginnings:
            holders = self._holders.setdefault(beginning, [])
            if chosen not in holders:
                holders.append(chosen)
                del holders[: -self.HOLDERS]
        return chosen

    def _beginnings(self, prompt: tuple[int, ...]) -> list[int]:
        found, key = [], 0
        for end in range(self.CHUNK, len(prompt) + 1, self.CHUNK):
            key = hash((key, prompt[end - self.CHUNK : end]))
            found.append(key)
        return found


ROUTERS: dict[str, Callable[[random.Random], Router]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "two-choices": TwoChoices,
    "affinity": Affinity,
    "prefix": PrefixAware,
}
