"""Which replica gets a request. A router sees prompts and how many requests each has to do; never a replica's cache."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from server.settings import Settings

# As many as an engine takes under Ray (server/ray_serve/app.py): what it computes, and a quarter.
PLACES = int(1.25 * Settings.model_fields["max_running"].default)


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


class Hash:
    """By a hash ring, as Ray Serve's ConsistentHashRouter or a balancer's consistent hash: always the same replica.

    Where that has `places` requests already, the next on the ring gets it, and so on; where all have, the first.
    Subclasses say what is hashed. Rings: Karger et al. 1997, doi:10.1145/258533.258660.
    """

    RING_POINTS = 100  # per replica, Ray's default

    def __init__(self, chance: random.Random, places: int) -> None:
        """places: what a replica takes before the next is tried; under Ray, max_ongoing_requests."""
        self._chance = chance
        self._places = places
        self._ring: list[tuple[float, int]] = []

    def choose(self, conversation: int, prompt: tuple[int, ...], outstanding: Sequence[int]) -> int:
        if not self._ring:
            points = range(self.RING_POINTS * len(outstanding))
            self._ring = sorted((self._chance.random(), n % len(outstanding)) for n in points)
        place = random.Random(self._key(conversation, prompt)).random()
        start = bisect.bisect_right(self._ring, (place, 0))
        seen: dict[int, None] = {}
        for step in range(len(self._ring)):
            replica = self._ring[(start + step) % len(self._ring)][1]
            if outstanding[replica] < self._places:
                return replica
            seen.setdefault(replica)
            if len(seen) == len(outstanding):
                break
        return next(iter(seen))

    def _key(self, conversation: int, prompt: tuple[int, ...]) -> str:
        raise NotImplementedError


class HashSession(Hash):
    """What Ray does by default: a conversation's beginning, its first question included, is its session."""

    def _key(self, conversation: int, prompt: tuple[int, ...]) -> str:
        return f"session {conversation}"


class HashPrompt(Hash):
    """What `prompt_cache_key` set to the tenant makes of it: the system prompt, told by its first tokens."""

    TOLD_BY = 128

    def _key(self, conversation: int, prompt: tuple[int, ...]) -> str:
        return f"prompt {prompt[: self.TOLD_BY]}"


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
    "hash": partial(HashSession, places=PLACES),
    "hash-prompt": partial(HashPrompt, places=PLACES),
    "prefix": PrefixAware,
}
