"""The plan beside what happened: the rows of that table of the report, in words. Numbers come from the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.record import RunRecord
from trainer.report.plots import series
from trainer.summary import count, duration, number, signed_percent


@dataclass(frozen=True, slots=True)
class Compared:
    """One row. change: of what happened against the plan; "–" where one of them is not known."""

    label: str
    planned: str
    happened: str
    change: str


def compare_with_plan(record: RunRecord) -> tuple[Compared, ...]:
    """Empty for a record without a plan (of an earlier version, or of a model that the plan cannot read)."""
    plan = record.expected
    if plan is None:
        return ()
    # All steps, also those of an earlier start of a run that was resumed.
    allocated = max(series(record.history, "allocated_gb")[1], default=None)
    card = f" on one {plan.card}" if plan.card else ""
    rows = (
        _row("steps", plan.steps, record.steps, count),
        _row("real tokens", plan.tokens, record.train_tokens_seen, count),
        _row(f"time of the steps{card}", plan.train_seconds, record.train_seconds, duration),
        _row("memory of a step, held by tensors", plan.step_gb, allocated, _gb),
        _row(
            "peak memory, evaluations included", plan.peak_gb, record.memory.peak_reserved_gb, _gb
        ),
    )
    return tuple(row for row in rows if row.planned != "–" or row.happened != "–")


def _row(
    label: str, planned: float | None, happened: float | None, show: Callable[[float], str]
) -> Compared:
    change = "–"
    if planned and happened is not None:
        ratio = happened / planned - 1
        change = signed_percent(ratio) if abs(ratio) >= 0.005 else "as planned"
    shown = [show(value) if value is not None else "–" for value in (planned, happened)]
    return Compared(label, shown[0], shown[1], change)


def _gb(value: float) -> str:
    return f"{number(value, 2)} GB"
