"""How soon a place becomes free: the honest Retry-After of a full queue."""

from __future__ import annotations

import math
from collections import deque

_WINDOW = 64  # answers that the rate is taken over
_UNKNOWN_SECONDS = 5  # before anything has ended
_LEAST_SECONDS, _MOST_SECONDS = 1, 60


class DrainRate:
    """Counts answers that end against the time spent in steps: a pause without work says nothing of the pace."""

    def __init__(self) -> None:
        self._busy_seconds = 0.0
        self._ends: deque[float] = deque(
            [0.0], maxlen=_WINDOW + 1
        )  # in busy seconds; the first is the start

    def observe(self, num_ended: int, busy_seconds: float) -> None:
        """Steps took busy_seconds more, and then num_ended answers had ended."""
        self._busy_seconds += busy_seconds
        self._ends.extend([self._busy_seconds] * num_ended)

    def seconds_until(self, num_places: int) -> int:
        """Whole seconds in which so many places become free at the recent pace, from 1 to 60."""
        num_ended = len(self._ends) - 1
        if num_ended == 0:
            return _UNKNOWN_SECONDS
        seconds = num_places * (self._busy_seconds - self._ends[0]) / num_ended
        return min(max(math.ceil(seconds), _LEAST_SECONDS), _MOST_SECONDS)
