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
from trainer.report.outcome import compare_with_plan
from trainer.report.plots import series
from trainer.scores import repetition

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph for both colour schemes, as data URLs, and in words."""

    light: str
    dark: str
    description: str


def render_page(record: RunRecord, graphs: Mapping[str, tuple[bytes, bytes]]) -> str:
    """The page. graphs: those of `draw_all`, PNG for (light, dark)."""
    history = record.history
    words = {
        "loss": describe_loss(history),
        "learning_rate": describe_learning_rate(history),
        "gradient_norm": _describe_range("gradient norm", history, "grad_norm"),
        "speed": _describe_range("speed", history, "tokens_per_second"),
        "memory": _describe_range("memory of a step in GB", history, "memory_gb"),
    }
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            run=record,
            verdict=summary.verdict(record),
            base_name=summary.base_name(record),
            relative_change=summary.relative_change,
            graphs={name: _graph(graphs[name], text) for name, text in words.items()},
            comparison=compare_with_plan(record),
            recipe=flatten(record.recipe),
            resolved_arguments=flatten(record.resolved_arguments),
        )
    )


def page_environment() -> Environment:
    """Jinja with what the pages share."""
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
        magnitude=summary.magnitude,
        moment=summary.moment,
        number=summary.number,
        percent=summary.percent,
        signed=summary.signed,
        storage=summary.storage,
        signed_percent=summary.signed_percent,
        perplexity=summary.perplexity,
        repetition=repetition,
    )
    return environment


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
    low, high = (
        f"{end:,.0f}" if end >= 1000 else f"{end:.3g}" for end in (min(values), max(values))
    )
    return f"The {label} is between {low} and {high}."


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
