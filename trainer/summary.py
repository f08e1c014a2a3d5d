"""The sentences and rounded figures that the report and the model card both say about a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from trainer.record import RunRecord, SourceLoss

ALL_SOURCES = "all"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
LEVEL_LIMIT = 0.01  # a relative change smaller than this is called no change


@dataclass(frozen=True, slots=True)
class Verdict:
    """The run in one sentence. outcome: better | level | worse | diverged | unmeasured."""

    outcome: str
    sentence: str


def overall_loss(record: RunRecord) -> SourceLoss | None:
    """The held-out loss over all sources: the row "all" where there is one, else the sources weighted by tokens."""
    for loss in record.losses:
        if loss.source == ALL_SOURCES:
            return loss
    tokens = sum(loss.tokens for loss in record.losses)
    if not tokens:
        return None
    return SourceLoss(
        source=ALL_SOURCES,
        base=sum(loss.base * loss.tokens for loss in record.losses) / tokens,
        tuned=sum(loss.tuned * loss.tokens for loss in record.losses) / tokens,
        rows=sum(loss.rows for loss in record.losses),
        tokens=tokens,
    )


def verdict(record: RunRecord) -> Verdict:
    """Whether the run helped, measured on rows it never trained on."""
    loss = overall_loss(record)
    if loss is None:
        return Verdict(
            "unmeasured", "Held-out loss was not measured: nothing says whether this run helped."
        )
    if not math.isfinite(loss.tuned):
        return Verdict(
            "diverged",
            "The training diverged: the tuned model's held-out loss is not a number. Do not use it.",
        )
    figures = (
        f"held-out loss {loss.base:.2f} → {loss.tuned:.2f} "
        f"over {count(loss.tokens)} tokens, {signed_percent(relative_change(loss))}"
    )
    change = relative_change(loss)
    if not math.isfinite(change) or abs(change) < LEVEL_LIMIT:
        return Verdict("level", f"No clear change: {figures}.")
    if change > 0:
        return Verdict("worse", f"Worse than the base model: {figures}.")
    return Verdict("better", f"Better than the base model: {figures}.")


def relative_change(loss: SourceLoss) -> float:
    """(tuned - base) / base; not a number where the base has no loss to compare with."""
    return (loss.tuned - loss.base) / loss.base if loss.base else math.nan


def perplexity(nats: float) -> str:
    """exp of a mean loss in nats, for people."""
    if not math.isfinite(nats):
        return "–"
    value = math.exp(min(nats, 30.0))
    return f"{value:.2f}" if value < 100 else count(value)


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


def signed(value: float, digits: int = 3) -> str:
    """A difference with a real minus sign: "−0.074"."""
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def signed_percent(ratio: float) -> str:
    """A change as a whole percentage with a real minus sign: "−72 %"."""
    if not math.isfinite(ratio):
        return "–"
    return f"{ratio * 100:+.0f}{NO_BREAK_SPACE}%".replace("-", "−")


def percent(ratio: float, digits: int = 0) -> str:
    return f"{ratio * 100:.{digits}f}{NO_BREAK_SPACE}%" if math.isfinite(ratio) else "–"


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return (
        f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}") if math.isfinite(value) else "–"
    )


def magnitude(value: float) -> str:
    """A number of parameters in about three digits: "3.21 B", "135 M", "164 K"."""
    return _scaled(value, ("", "K", "M", "B", "T"))


def storage(gigabytes: float) -> str:
    """GB of 1e9 bytes in about three digits, in the unit that suits them: "5.23 GB", "164 MB"."""
    return _scaled(gigabytes * 1e9, ("B", "kB", "MB", "GB", "TB"))


def memory_unit(largest_gb: float) -> tuple[str, float]:
    """The unit of a whole table of GB whose largest is this, and what to multiply with."""
    return ("GB", 1.0) if largest_gb >= 1 else ("MB", 1000.0)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return "–"
    step = 0
    while step < len(units) - 1 and round(value) >= 1000:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}{NO_BREAK_SPACE}{units[step]}".rstrip(NO_BREAK_SPACE)


def duration(seconds: float) -> str:
    """Two units at most: "41 s", "3 min 07 s", "2 h 05 min"."""
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def moment(timestamp: str) -> str:
    """An ISO 8601 time as "2026-11-23 08:16 UTC"; text that is no such time as it is."""
    try:
        when = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def base_name(record: RunRecord) -> str:
    """The base with its revision where one is known: "owner/model at 1a2b3c4d"."""
    revision = record.base.revision
    return f"{record.base.id} at {revision[:8]}" if revision else record.base.id
