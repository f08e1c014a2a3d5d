"""Prints what the data stage made: the counts of every source and masked samples with the trained tokens marked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.dataset import PreparedData
from trainer.record import MaskedSample, SourceCounts

COLUMNS = (
    ("read", "read"),
    ("chosen", "chosen"),
    ("duplicates", "near-duplicates"),
    ("rejected", "malformed"),
    ("no_trained_token", "no answer"),
    ("too_long", "too long"),
    ("truncated", "of these truncated"),
    ("kept", "kept"),
    ("train_rows", "train"),
    ("test_rows", "held out"),
    ("train_tokens", "train tokens"),
    ("trained_tokens", "of these trained"),
)
# Marks that survive a log or a colour-blind reader; the colour is an extra.
OPEN, CLOSE = "⟦", "⟧"


def show_data(
    data: PreparedData, samples: Sequence[MaskedSample], console: Console | None = None
) -> None:
    """Print the counts and the samples on standard output."""
    out = console or Console()
    table = Table(title="Rows and tokens by source", title_justify="left")
    table.add_column("")
    for count in data.counts:
        table.add_column(count.name, justify="right")
    for key, label in COLUMNS:
        table.add_row(label, *(f"{_value(count, key):,}" for count in data.counts))
    out.print(table)
    for count in data.counts:
        out.print(
            f"{count.name}: {count.location} {count.revision or ''} {count.fingerprint}",
            markup=False,
            highlight=False,
        )
    for number, sample in enumerate(samples, start=1):
        out.rule(f"Sample {number} ({sample.source}); trained text is in {OPEN} {CLOSE}")
        out.print(marked(sample), soft_wrap=True)


def marked(sample: MaskedSample) -> Text:
    """The sample's text, trained spans between marks and in green."""
    text = Text()
    for span, is_trained in sample.spans:
        if is_trained:
            text.append(f"{OPEN}{span}{CLOSE}", style="green")
        else:
            text.append(span, style="dim")
    return text


def _value(count: SourceCounts, key: str) -> int:
    value = getattr(count, key)
    assert isinstance(value, int)
    return value
