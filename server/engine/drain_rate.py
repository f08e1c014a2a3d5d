"""How soon a place becomes free: the honest Retry-After of a full queue."""

from __future__ import annotations

import math
from collections import deque

_WINDOW = 64  # observations that the rate is taken over
_UNKNOWN_SECONDS = 5  # before anything has gone
_LEAST_SECONDS, _MOST_SECONDS = 1, 60


class DrainRate:
    """Counts what goes (answers that end, prompt tokens that cease to wait) against the time spent in steps.

    A pause without work says nothing of the pace.
    """

    def __init__(self) -> None:
        self._busy_seconds = 0.0
        # (busy seconds, how many went then); the first only says when the window begins.
        self._gone: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=_WINDOW + 1)

    def observe(self, num_gone: int, busy_seconds: float) -> None:
        """Steps took busy_seconds more, and then num_gone had gone."""
        self._busy_seconds += busy_seconds
        if num_gone:
            self._gone.append((self._busy_seconds, num_gone))

    def seconds_until(self, num_places: int) -> int:
        """Whole seconds in which so many places become free at the recent pace, from 1 to 60."""
        begun, _ = self._gone[0]
        num_gone = sum(number for _, number in self._gone) - self._gone[0][1]
        if num_gone == 0:
            return _UNKNOWN_SECONDS
        seconds = num_places * (self._busy_seconds - begun) / num_gone
        return min(max(math.ceil(seconds), _LEAST_SECONDS), _MOST_SECONDS)
