"""Our runs against a peer's: pairs made one after the other, and the ratio of each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.figures import Level
from benchmarks.measure import Run


@dataclass(frozen=True, slots=True)
class Ratio:
    """what: the figure. plain: ours / peer's, one for each pair of runs.

    at_equal_bandwidth: the same with both taken in proportion to the bandwidth that the probe found beside them.
    Fair for what memory limits (few users); for what arithmetic limits it over-corrects.
    """

    what: str
    kind: str
    peer: str
    plain: list[float] = field(default_factory=list)
    at_equal_bandwidth: list[float] = field(default_factory=list)


def ratios(runs: Sequence[Run], ours: str) -> list[Ratio]:
    """For every peer, kind and concurrency that both have. runs: in the order they were made.

    Where the numbers of runs differ, the last of the fewer is paired with what is left of the others, so that one
    run of ours stands against all of a peer's of the day, or the other way round.
    """
    found: dict[tuple[str, str, str], Ratio] = {}
    for peer in dict.fromkeys(run.server for run in runs if run.server != ours):
        for kind in dict.fromkeys(run.kind for run in runs):
            mine = [run for run in runs if (run.server, run.kind) == (ours, kind)]
            theirs = [run for run in runs if (run.server, run.kind) == (peer, kind)]
            for our_run, their_run in _pairs(mine, theirs):
                scale = our_run.bandwidth / their_run.bandwidth
                for what, power, a, b in _figures(our_run, their_run):
                    ratio = found.setdefault((what, kind, peer), Ratio(what, kind, peer))
                    ratio.plain.append(a / b)
                    ratio.at_equal_bandwidth.append(a / b * scale**power)
    return list(found.values())


def _pairs(mine: Sequence[Run], theirs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    if mine and theirs:
        for i in range(max(len(mine), len(theirs))):
            yield mine[min(i, len(mine) - 1)], theirs[min(i, len(theirs) - 1)]


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
                yield f"{name}, {level.concurrency} users", power, a, b
    if ours.peak_bytes and theirs.peak_bytes:
        yield "peak memory", _NEITHER, ours.peak_bytes, theirs.peak_bytes
    if ours.turns and theirs.turns and ours.turns.later and theirs.turns.later:
        yield "TTFT of later turns", _TIME, ours.turns.later, theirs.turns.later
