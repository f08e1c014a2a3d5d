"""How much one API key may use: requests and tokens per minute, as token buckets, told in OpenAI's headers.

Tokens are counted when they are used, not when they are asked for: a prompt when it is accepted, an answer as it is
written. So a bucket can be overdrawn, and the next request waits until it is filled again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from server.errors import RateLimitError


class Quota:
    """Buckets that hold what a minute allows, full at first. None is no limit. Belongs to the event loop."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = (requests_per_minute, tokens_per_minute)
        self._requests = _Bucket("requests", "RPM", requests_per_minute, clock)
        self._tokens = _Bucket("tokens", "TPM", tokens_per_minute, clock)

    def take_request(self) -> None:
        """Raises RateLimitError, and then nothing was taken."""
        self._tokens.check(1)
        self._requests.check(1)
        self._requests.take(1)

    def check_tokens(self, num_tokens: int) -> None:
        """Raises RateLimitError unless so many tokens are there, or all that there can be."""
        self._tokens.check(num_tokens)

    def spend_tokens(self, num_tokens: int) -> None:
        self._tokens.take(num_tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's x-ratelimit-* headers, of the limits that there are."""
        return [*self._requests.headers(), *self._tokens.headers()]


class _Bucket:
    """Fills evenly, up to a minute's worth. per_minute: its size; None is no limit."""

    def __init__(
        self, name: str, short: str, per_minute: int | None, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._short = short
        self._size = per_minute
        self._clock = clock
        self._level = float(per_minute or 0)
        self._at = clock()

    def check(self, amount: int) -> None:
        if self._size is None:
            return
        level = self._fill()
        wanted = min(amount, self._size)  # more can never be there; it is overdrawn instead
        if level >= wanted:
            return
        seconds = self._seconds_until(wanted)
        raise RateLimitError(
            f"Rate limit reached for {self._name} per min ({self._short}): Limit {self._size}, Used"
            f" {math.ceil(self._size - level)}, Requested {amount}. Please try again in {_duration(seconds)}.",
            kind=self._name,
            retry_after=max(1, math.ceil(seconds)),
        )

    def take(self, amount: int) -> None:
        if self._size is not None:
            self._level = self._fill() - amount

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self._size is None:
            return []
        values = {
            "limit": str(self._size),
            "remaining": str(max(0, math.floor(self._fill()))),
            "reset": _duration(self._seconds_until(self._size)),
        }
        return [
            (f"x-ratelimit-{what}-{self._name}".encode(), value.encode())
            for what, value in values.items()
        ]

    def _fill(self) -> float:
        assert self._size is not None
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self._size / 60)
        self._at = now
        return self._level

    def _seconds_until(self, level: float) -> float:
        assert self._size is not None
        return max(0.0, (level - self._fill()) * 60 / self._size)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 2s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
