"""What a server's own numbers say: memory, open files, slots and blocks, over the time of the soak."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

PERIOD_SECONDS = 1.0


@dataclass(slots=True)
class Watch:
    """rss: (seconds since the beginning, bytes of physical memory) of the process, every second."""

    url: str
    pid: int
    key: str
    rss: list[tuple[float, int]] = field(default_factory=list)

    def run(self, ended: threading.Event) -> None:
        begun = time.monotonic()
        while not ended.wait(PERIOD_SECONDS):
            self.rss.append((time.monotonic() - begun, resident_bytes(self.pid)))

    def tenths(self) -> list[int]:
        """The median memory of each tenth of the time, in bytes: the first one is for warming up."""
        values = [bytes_ for _, bytes_ in self.rss]
        cuts = [len(values) * tenth // 10 for tenth in range(11)]
        return [
            int(statistics.median(values[first:last] or values)) for first, last in pairwise(cuts)
        ]

    def numbers(self) -> dict[str, float]:
        """Every series of /metrics: `name{label="value"}` without labels' order changed -> value."""
        found = {}
        for family in text_string_to_metric_families(
            httpx.get(f"{self.url}/metrics", timeout=60, headers={"x-api-key": self.key}).text
        ):
            for sample in family.samples:
                labels = ",".join(f'{k}="{v}"' for k, v in sample.labels.items())
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def wait_until_idle(self, seconds: float = 60) -> dict[str, float]:
        """The numbers once nothing runs or waits, or at the end of the time."""
        deadline = time.monotonic() + seconds
        while True:
            numbers = self.numbers()
            busy = total(numbers, "vllm:num_requests_running") + total(
                numbers, "vllm:num_requests_waiting"
            )
            if busy == 0 or time.monotonic() > deadline:
                return numbers
            time.sleep(0.2)


def total(numbers: dict[str, float], name: str) -> float:
    """Of all series of a metric."""
    return sum(
        value
        for series, value in numbers.items()
        if series == name or series.startswith(f"{name}{{")
    )


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
