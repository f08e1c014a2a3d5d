"""Renders report.html: one file that needs no network, made to be read in two minutes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer import summary
from trainer.record import HistoryPoint, RunRecord
from trainer.report.plots import series
from trainer.scores import repetition

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph for both colour schemes, as data URLs, and in words."""

    light: str
    dark: str
    description: str


def render_page(
    record: RunRecord,
    *,
    loss_images: tuple[bytes, bytes],
    learning_rate_images: tuple[bytes, bytes],
    gradient_norm_images: tuple[bytes, bytes],
    speed_images: tuple[bytes, bytes],
) -> str:
    """The page. Images are PNG, (light, dark)."""
    # Autoescape is what keeps a model's answer from becoming part of the page.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=summary.count,
        duration=summary.duration,
        moment=summary.moment,
        number=summary.number,
        percent=summary.percent,
        signed=summary.signed,
        signed_percent=summary.signed_percent,
        perplexity=summary.perplexity,
        repetition=repetition,
    )
    return environment.get_template("report.html.j2").render(
        run=record,
        verdict=summary.verdict(record),
        base_name=summary.base_name(record),
        relative_change=summary.relative_change,
        loss_graph=_graph(loss_images, describe_loss(record.history)),
        learning_rate_graph=_graph(learning_rate_images, describe_learning_rate(record.history)),
        gradient_norm_graph=_graph(
            gradient_norm_images, _describe_range("gradient norm", record.history, "grad_norm")
        ),
        speed_graph=_graph(
            speed_images, _describe_range("speed", record.history, "tokens_per_second")
        ),
        recipe=flatten(record.recipe),
        resolved_arguments=flatten(record.resolved_arguments),
    )


def describe_loss(history: Sequence[HistoryPoint]) -> str:
    """The loss graph in words, for those who do not see it."""
    sentences = []
    for label, field in (("Training", "train_loss"), ("Validation", "eval_loss")):
        steps, values = series(history, field)
        if len(steps) == 1:
            sentences.append(f"{label} loss is {values[0]:.2f} at step {steps[0]}.")
        elif steps:
            sentences.append(
                f"{label} loss goes from {values[0]:.2f} at step {steps[0]} "
                f"to {values[-1]:.2f} at step {steps[-1]}."
            )
    return " ".join(sentences) or "No loss was logged."


def describe_learning_rate(history: Sequence[HistoryPoint]) -> str:
    """The learning-rate graph in words."""
    steps, rates = series(history, "learning_rate")
    if not steps:
        return "No learning rate was logged."
    if len(steps) == 1:
        return f"The learning rate is {rates[0]:.3g} at step {steps[0]}."
    peak = max(rates)
    return (
        f"The learning rate starts at {rates[0]:.3g}, is highest at step {steps[rates.index(peak)]} "
        f"with {peak:.3g}, and ends at {rates[-1]:.3g} at step {steps[-1]}."
    )


def _describe_range(label: str, history: Sequence[HistoryPoint], field: str) -> str:
    steps, values = series(history, field)
    if not steps:
        return f"No {label} was logged."
    return f"The {label} is between {min(values):,.3g} and {max(values):,.3g}."


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text) pairs, in their own order."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            rows += flatten({str(index): item for index, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(map(str, value))))
        else:
            rows.append((name, str(value)))
    return rows


def _graph(images: tuple[bytes, bytes], description: str) -> Graph:
    light, dark = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images)
    return Graph(light, dark, description)
