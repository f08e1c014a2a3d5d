"""Figures as Markdown tables, for the terminal and for docs/results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from statistics import median

from benchmarks.figures import Level, Turns
from benchmarks.machine import Machine
from benchmarks.measure import Run
from benchmarks.ratios import Ratio


def machine_line(machine: Machine) -> str:
    flags = " ".join(machine.flags)
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {flags};"
        f" {machine.system}, Python {machine.python}"
    )


def runs_table(runs: Iterable[Run]) -> str:
    """A row per server, kind and concurrency."""
    rows = [_row(run, level) for run in runs for level in run.levels]
    head = [
        "server", "models", "users", "tok/s", "TTFT p50 ms", "p95", "ms/token p50", "p95", "gap p99 ms",
        "requests", "tokens in + out", "GB/s",
        "others' CPU",
    ]  # fmt: skip
    return markdown(head, rows)


def _row(run: Run, level: Level) -> list[str]:
    return [
        run.server,
        run.kind,
        str(level.concurrency),
        f"{level.tokens_per_second:.1f}",
        _cell(level.first_token_ms_p50),
        _cell(level.first_token_ms_p95),
        _cell(level.token_ms_p50, 1),
        _cell(level.token_ms_p95, 1),
        _cell(level.gap_ms_p99),
        f"{level.requests}" + (f" ({level.errors} failed)" if level.errors else ""),
        f"{level.prompt_tokens} + {level.output_tokens}",
        f"{run.bandwidth:.1f}",
        "–" if run.others_cpu is None else f"{run.others_cpu:.0%}",
    ]


def servers_table(runs: Sequence[Run], ours: str) -> str:
    """A row per server and kind: start, memory, conversations, and how much of its answers is as ours."""
    rows = [
        [
            run.server,
            run.kind,
            run.version,
            _cell(run.first_token_seconds, 1),
            _cell(None if run.peak_bytes is None else run.peak_bytes / 1e6),
            _cell(turns.first),
            _cell(turns.later),
            _cell(turns.again),
            _cell(turns.reuse, 2),
            _cell(_agreement(run, runs, ours), 2),
        ]
        for run in runs
        for turns in [run.turns or Turns(0, 0, None, None, None, None)]
    ]
    head = [
        "server", "models", "version", "start to first token s", "peak memory MB", "first turn TTFT ms",
        "later turns", "same prompts cold", "later / cold",
        "answers as ours",
    ]  # fmt: skip
    return markdown(head, rows)


def _same_beginning(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _agreement(run: Run, runs: Sequence[Run], ours: str) -> float | None:
    """Mean over the fixed questions of the share of the answer, from its beginning, that is the same as ours."""
    for other in runs:
        if (other.server, other.kind) == (ours, run.kind) and other.answers:
            shares = [
                _same_beginning(a, b) / max(len(a), len(b), 1)
                for a, b in zip(run.answers, other.answers, strict=True)
            ]
            return sum(shares) / len(shares)
    return None


def ratios_table(ratios: Iterable[Ratio]) -> str:
    rows = [
        [
            ratio.what,
            ratio.kind,
            ratio.peer,
            f"{median(ratio.plain):.2f}",
            f"{median(ratio.at_equal_bandwidth):.2f}",
            ", ".join(f"{value:.2f}" for value in ratio.plain),
        ]
        for ratio in ratios
    ]
    return markdown(["what", "models", "peer", "ratio", "at equal GB/s", "each pair"], rows)


def _cell(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join(
        [line(head), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)]
    )
