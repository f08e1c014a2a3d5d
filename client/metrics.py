"""What the server measures, over time: Prometheus' text form, under vLLM's names, in; figures out.

Knows neither HTTP nor HTML. A figure that the server does not measure is None.
"""

import math
import re
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_BUCKET_END = re.compile(r'\ble="([^"]*)"')
_FIRST_TOKEN = "vllm:time_to_first_token_seconds"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: the sum of each metric over its labels, and the first-token histogram.

    `first_token` maps the upper end of a bucket in seconds to the answers up to it.
    """

    seconds: float
    values: dict[str, float]
    first_token: dict[float, float]


def parse(text: str, seconds: float) -> Sample:
    """Read the text form, taken at `seconds` of a steady clock; lines of another form are skipped."""
    values: dict[str, float] = {}
    buckets: dict[float, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        name, labels, number = match.groups()
        try:
            value = float(number)
            end = _BUCKET_END.search(labels or "")
            if name == f"{_FIRST_TOKEN}_bucket" and end:
                bucket = float(end[1])
                buckets[bucket] = buckets.get(bucket, 0.0) + value
        except ValueError:
            continue
        values[name] = values.get(name, 0.0) + value
    return Sample(seconds, values, buckets)


class History:
    """The last samples, at most `seconds` old."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Take the next look. One that counts less than the last is of a restarted server."""
        if self._samples and _counted(sample) < _counted(self._samples[-1]):
            self._samples.clear()
        self._samples.append(sample)
        while self._samples[0].seconds < sample.seconds - self._seconds:
            self._samples.popleft()

    def clear(self) -> None:
        self._samples.clear()

    @property
    def newest(self) -> float:
        """When the last look was; minus infinity if there was none."""
        return self._samples[-1].seconds if self._samples else -math.inf

    def now(self, name: str) -> float | None:
        """The last value."""
        return self._samples[-1].values.get(name) if self._samples else None

    def course(self, name: str) -> list[float]:
        """All values, oldest first."""
        return [sample.values.get(name, 0.0) for sample in self._samples]

    def rates(self, name: str) -> list[float]:
        """Increase of a counter per second, between each two looks."""
        return [
            (after.values.get(name, 0.0) - before.values.get(name, 0.0))
            / max(after.seconds - before.seconds, 1e-3)
            for before, after in pairwise(self._samples)
        ]

    def share(self, part: str, whole: str) -> float | None:
        """One counter's part of another, from 0 to 1, since the server started."""
        of, total = self.now(part), self.now(whole)
        return of / total if of is not None and total else None

    def first_token_seconds(self, quantile: float) -> float | None:
        """Time within which this share of the answers began, since the server started.

        Linear within a bucket, as Prometheus' histogram_quantile; the last finite end beyond it.
        """
        buckets = sorted(self._samples[-1].first_token.items()) if self._samples else []
        if not buckets or not buckets[-1][1]:
            return None
        wanted = quantile * buckets[-1][1]
        start, before = 0.0, 0.0
        for end, count in buckets:
            if count >= wanted:
                if math.isinf(end):
                    return start
                return start + (end - start) * (wanted - before) / max(count - before, 1e-9)
            start, before = end, count
        return start


def _counted(sample: Sample) -> float:
    return sample.values.get("vllm:prompt_tokens_total", 0.0)
