"""Puts the files of a report into a folder."""

from __future__ import annotations

from pathlib import Path

from trainer.record import RunRecord
from trainer.report.page import render_page
from trainer.report.plots import (
    DARK,
    LIGHT,
    draw_gradient_norm,
    draw_learning_rate,
    draw_loss,
    draw_speed,
)
from trainer.report.tables import answers_csv, history_csv, losses_csv
from trainer.strict_json import strict_json


def write_report(record: RunRecord, directory: Path) -> None:
    """Write report.html, run.json, three CSV files and two PNG graphs, replacing those of an earlier call.

    Raises OSError where the folder cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    loss = draw_loss(record.history, LIGHT)
    learning_rate = draw_learning_rate(record.history, LIGHT)
    page = render_page(
        record,
        loss_images=(loss, draw_loss(record.history, DARK)),
        learning_rate_images=(learning_rate, draw_learning_rate(record.history, DARK)),
        gradient_norm_images=(
            draw_gradient_norm(record.history, LIGHT),
            draw_gradient_norm(record.history, DARK),
        ),
        speed_images=(draw_speed(record.history, LIGHT), draw_speed(record.history, DARK)),
    )
    texts = {
        "run.json": strict_json(record),
        "history.csv": history_csv(record.history),
        "losses.csv": losses_csv(record.losses),
        "answers.csv": answers_csv(record.answers),
        "report.html": page,
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
    (directory / "loss.png").write_bytes(loss)
    (directory / "learning_rate.png").write_bytes(learning_rate)
