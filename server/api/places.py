"""How many connections may be open at one port, and which one goes when another comes. Knows no HTTP.

Whoever waits for nothing makes room: at the limit the connection that has been without a request for longest is closed.
Where all are busy a few more are let in, to be told so; health, readiness and metrics are answered there too, or a
supervisor would take a crowd for a fault. Beyond these, connections are cut without a word.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("lorachat.api")

SPARE = 64
# A caller sends its request at once; this is patience with a network. In the spare places there is less of it, so that
# a supervisor's question gets through even while a flood goes on.
LEAST_IDLE_SECONDS = 1.0
LEAST_SPARE_IDLE_SECONDS = 0.1
_LOG_SECONDS = 60.0


class Guest(Protocol):
    """A connection."""

    @property
    def idle_since(self) -> float | None:
        """By the clock of its places; None while a request is in work or an answer on its way."""
        ...

    def close(self) -> None: ...


class Places:
    """limit: connections that may ask for anything, beside spare ones. Belongs to one event loop; any may read it."""

    def __init__(
        self, limit: int, *, spare: int = SPARE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.closed = 0  # idle ones, to make room
        self.cut = 0  # at once: there was no place for them
        self._num_spare = spare
        self._clock = clock
        self._seated: set[Guest] = set()
        self._standing: set[Guest] = set()
        self._logged: float | None = None

    @property
    def open(self) -> int:
        return len(self._seated) + len(self._standing)

    def enter(self, guest: Guest) -> bool:
        """False if it has no place, and must go."""
        if len(self._seated) < self.limit or self._make_room(self._seated):
            self._seated.add(guest)
            return True
        if len(self._standing) < self._num_spare or self._make_room(
            self._standing, LEAST_SPARE_IDLE_SECONDS
        ):
            self._standing.add(guest)
            return True
        self.cut += 1
        return False

    def leave(self, guest: Guest) -> None:
        """Safe for one that is not there."""
        self._seated.discard(guest)
        self._standing.discard(guest)

    def may_ask(self, guest: Guest) -> bool:
        """Whether a request of it may begin: it has one of the limit's places, or one is free by now."""
        if guest in self._seated:
            return True
        if len(self._seated) < self.limit or self._make_room(self._seated):
            self._standing.discard(guest)
            self._seated.add(guest)
            return True
        return False

    def _make_room(
        self, places: set[Guest], least_idle_seconds: float = LEAST_IDLE_SECONDS
    ) -> bool:
        now = self._clock()
        if self._logged is None or now - self._logged >= _LOG_SECONDS:
            self._logged = now
            log.warning(
                "all %d connections of --max-connections are open: idle ones are closed, others get a 503",
                self.limit,
            )
        idle = [(since, guest) for guest in places if (since := guest.idle_since) is not None]
        since, longest = min(idle, key=lambda entry: entry[0], default=(now, None))
        if longest is None or now - since < least_idle_seconds:
            return False
        places.discard(longest)
        self.closed += 1
        longest.close()
        return True
