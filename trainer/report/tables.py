"""The run's tables as CSV, one column per field of the record. An absent measurement is an empty cell."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.record import Answer, HistoryPoint, SourceLoss


def history_csv(history: Iterable[HistoryPoint]) -> str:
    columns = _columns(HistoryPoint)
    return _csv(columns, ([getattr(point, name) for name in columns] for point in history))


def losses_csv(losses: Iterable[SourceLoss]) -> str:
    """Losses in nats per token, with the perplexity of each."""
    columns = _columns(SourceLoss)
    rows = (
        [
            *(getattr(loss, name) for name in columns),
            _perplexity(loss.base),
            _perplexity(loss.tuned),
        ]
        for loss in losses
    )
    return _csv([*columns, "base_perplexity", "tuned_perplexity"], rows)


def answers_csv(answers: Iterable[Answer]) -> str:
    columns = _columns(Answer)
    return _csv(columns, ([getattr(answer, name) for name in columns] for answer in answers))


def _columns(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _perplexity(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None  # not a number fails the comparison, too


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
