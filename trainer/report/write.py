"""Puts the files of a report into a folder."""

from __future__ import annotations

from pathlib import Path

from trainer.record import RunRecord
from trainer.report.page import render_page
from trainer.report.plots import draw_all
from trainer.report.tables import answers_csv, history_csv, losses_csv
from trainer.strict_json import strict_json


def write_report(record: RunRecord, directory: Path) -> None:
    """Write report.html, run.json, three CSV files and a PNG per graph, replacing those of an earlier call.

    Raises OSError where the folder cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graphs = draw_all(record.history)
    texts = {
        "run.json": strict_json(record),
        "history.csv": history_csv(record.history),
        "losses.csv": losses_csv(record.losses),
        "answers.csv": answers_csv(record.answers),
        "report.html": render_page(record, graphs),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
    for name, (light, _) in graphs.items():
        (directory / f"{name}.png").write_bytes(light)
