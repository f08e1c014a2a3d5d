"""Our runs against a peer's, and against each other: pairs made close in time, and the ratio of each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

from benchmarks.figures import Level
from benchmarks.measure import Run


@dataclass(frozen=True, slots=True)
class Ratio:
    """what: the figure. plain: the first / the second, one for each pair of runs. lower_is_better: of the figure.

    at_equal_bandwidth: the same with both taken in proportion to the bandwidth that the probe found beside them.
    Fair for what memory limits (few users); for what arithmetic limits it over-corrects.
    """

    what: str
    kind: str
    peer: str
    lower_is_better: bool
    plain: list[float] = field(default_factory=list)
    at_equal_bandwidth: list[float] = field(default_factory=list)


def ratios(runs: Sequence[Run], ours: str) -> list[Ratio]:
    """Ours / the peer's, for every peer, kind and concurrency that both have.

    runs: in the order they were made. Of ours only those of its newest version count.
    """
    mine = newest_version(runs, ours)
    found: list[Ratio] = []
    for peer in dict.fromkeys(run.server for run in runs if run.server != ours):
        for kind in dict.fromkeys(run.kind for run in mine):
            theirs = [run for run in runs if (run.server, run.kind) == (peer, kind)]
            found += _ratios([run for run in mine if run.kind == kind], theirs, kind, peer)
    return found


def hardest(found: Sequence[Ratio], peers: Sequence[str]) -> list[Ratio]:
    """Of each figure the ratio to that peer, of the named ones, which gave the best."""
    best: dict[tuple[str, str], Ratio] = {}
    for ratio in found:
        if ratio.peer not in peers:
            continue
        key = (ratio.what, ratio.kind)
        worst = max if ratio.lower_is_better else min
        best[key] = worst(best.get(key, ratio), ratio, key=lambda r: median(r.plain))
    return list(best.values())


def kinds_compared(runs: Sequence[Run], ours: str) -> list[Ratio]:
    """Our own server with one adapter against none, and with eight adapters against one."""
    mine = newest_version(runs, ours)
    found: list[Ratio] = []
    for kind, other in (("one", "base"), ("eight", "one")):
        first = [run for run in mine if run.kind == kind]
        second = [run for run in mine if run.kind == other]
        found += _ratios(first, second, f"{kind} / {other}", ours)
    return found


def newest_version(runs: Sequence[Run], server: str) -> list[Run]:
    mine = [run for run in runs if run.server == server]
    return [run for run in mine if run.version == mine[-1].version]


def _ratios(firsts: Sequence[Run], seconds: Sequence[Run], kind: str, peer: str) -> list[Ratio]:
    found: dict[str, Ratio] = {}
    for first, second in _pairs(firsts, seconds):
        scale = first.bandwidth / second.bandwidth
        for what, power, a, b in _figures(first, second):
            ratio = found.setdefault(what, Ratio(what, kind, peer, lower_is_better=power != _RATE))
            ratio.plain.append(a / b)
            ratio.at_equal_bandwidth.append(a / b * scale**power)
    return list(found.values())


def _pairs(firsts: Sequence[Run], seconds: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Each run of the side that has fewer, with the run of the other side that was made closest to it."""

    def closest(run: Run, others: Sequence[Run]) -> Run:
        at = datetime.fromisoformat(run.at)
        return min(others, key=lambda other: abs(datetime.fromisoformat(other.at) - at))

    if not firsts or not seconds:
        return
    if len(firsts) <= len(seconds):
        yield from ((first, closest(first, seconds)) for first in firsts)
    else:
        yield from ((closest(second, firsts), second) for second in seconds)


# How a figure changes with the bandwidth: a time shrinks (1), a rate grows (-1), memory does neither (0).
_TIME, _RATE, _NEITHER = 1, -1, 0
_FIGURES: tuple[tuple[str, int, Callable[[Level], float | None]], ...] = (
    ("tok/s", _RATE, lambda level: level.tokens_per_second),
    ("ms/token", _TIME, lambda level: level.token_ms_p50),
    ("TTFT of first turns", _TIME, lambda level: level.opening_ms_p50),
)


def _figures(ours: Run, theirs: Run) -> Iterator[tuple[str, int, float, float]]:
    """(name, power of the bandwidth, ours, theirs) of every figure that both runs have."""
    levels = {level.concurrency: level for level in theirs.levels}
    for level in ours.levels:
        other = levels.get(level.concurrency)
        if other is None:
            continue
        for name, power, of in _FIGURES:
            a, b = of(level), of(other)
            if a and b:
                users = "1 user" if level.concurrency == 1 else f"{level.concurrency} users"
                yield f"{name}, {users}", power, a, b
    if ours.peak_bytes and theirs.peak_bytes:
        yield "peak memory", _NEITHER, ours.peak_bytes, theirs.peak_bytes
    if ours.first_token_seconds and theirs.first_token_seconds:
        yield "start to first token", _NEITHER, ours.first_token_seconds, theirs.first_token_seconds
    if ours.turns and theirs.turns and ours.turns.later and theirs.turns.later:
        yield "TTFT of later turns", _TIME, ours.turns.later, theirs.turns.later
