"""Draws the run's graphs as PNG.

Figures are made directly on the Agg canvas: pyplot would keep global state and look for a screen.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.record import HistoryPoint

SIZE_INCHES = (5.2, 3.2)  # small, so that the text stays readable on a phone
DOTS_PER_INCH = 200


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a graph; each pair has a contrast of at least 3 to 1 against the background."""

    background: str
    text: str
    grid: str
    first: str
    second: str


LIGHT = Palette("#ffffff", "#1d2433", "#d9dde5", "#1f5fbf", "#b3460a")
DARK = Palette("#1a1f2b", "#e6e9f0", "#3a4252", "#7fb2ff", "#ffab6b")

Points = tuple[list[int], list[float]]


def draw_loss(history: Sequence[HistoryPoint], palette: Palette) -> bytes:
    """Training and validation loss (nats per token) over steps."""
    figure, axes = _graph("Loss over steps", "loss (nats per token)", palette)
    trained = series(history, "train_loss")
    evaluated = series(history, "eval_loss")
    # Told apart by line and marker as well as by colour.
    if trained[0]:
        axes.plot(*trained, color=palette.first, marker=_marker(trained), label="training")
    if evaluated[0]:
        axes.plot(
            *evaluated,
            color=palette.second,
            linestyle="--",
            marker="s",
            markersize=4.5,
            label="validation",
        )
    _finish(axes, palette, steps=trained[0] + evaluated[0], legend=True)
    return _png(figure)


def draw_learning_rate(history: Sequence[HistoryPoint], palette: Palette) -> bytes:
    """The learning rate as the optimiser used it, over steps."""
    figure, axes = _graph("Learning rate over steps", "learning rate", palette)
    rates = series(history, "learning_rate")
    axes.plot(*rates, color=palette.first, marker=_marker(rates))
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4), useMathText=True)
    axes.yaxis.get_offset_text().set_color(palette.text)
    _finish(axes, palette, steps=rates[0], legend=False)
    return _png(figure)


def draw_gradient_norm(history: Sequence[HistoryPoint], palette: Palette) -> bytes:
    """The gradient's norm, before it is clipped, over steps."""
    return _draw(history, "grad_norm", "Gradient norm over steps", "norm before clipping", palette)


def draw_speed(history: Sequence[HistoryPoint], palette: Palette) -> bytes:
    """Real tokens per second since the point before, over steps."""
    return _draw(history, "tokens_per_second", "Speed over steps", "real tokens/s", palette)


def draw_memory(history: Sequence[HistoryPoint], palette: Palette) -> bytes:
    """Memory of each step (GB): reserved and held by tensors on a GPU, resident on a CPU."""
    figure, axes = _graph("Memory over steps", "GB (1e9 bytes)", palette)
    held, allocated = series(history, "memory_gb"), series(history, "allocated_gb")
    if held[0]:
        label = "reserved" if allocated[0] else "resident"
        axes.plot(*held, color=palette.first, marker=_marker(held), label=label)
    if allocated[0]:
        axes.plot(
            *allocated,
            color=palette.second,
            linestyle="--",
            marker=_marker(allocated),
            label="allocated",
        )
    axes.set_ylim(0, 1.25 * max([*held[1], *allocated[1]], default=1.0))  # room for the legend
    _finish(axes, palette, steps=held[0], legend=True)
    return _png(figure)


def draw_all(history: Sequence[HistoryPoint]) -> dict[str, tuple[bytes, bytes]]:
    """All graphs as PNG by name, each for a light and a dark page."""
    drawers = {
        "loss": draw_loss,
        "learning_rate": draw_learning_rate,
        "gradient_norm": draw_gradient_norm,
        "speed": draw_speed,
        "memory": draw_memory,
    }
    return {name: (draw(history, LIGHT), draw(history, DARK)) for name, draw in drawers.items()}


def _draw(
    history: Sequence[HistoryPoint], field: str, title: str, ylabel: str, palette: Palette
) -> bytes:
    figure, axes = _graph(title, ylabel, palette)
    points = series(history, field)
    axes.plot(*points, color=palette.first, marker=_marker(points))
    axes.set_ylim(bottom=0)
    _finish(axes, palette, steps=points[0], legend=False)
    return _png(figure)


def series(history: Sequence[HistoryPoint], field: str) -> Points:
    """(steps, values) of the points where `field` was measured and finite."""
    pairs = [(point.step, getattr(point, field)) for point in history]
    known = [(step, value) for step, value in pairs if value is not None and math.isfinite(value)]
    return [step for step, _ in known], [value for _, value in known]


def _marker(points: Points) -> str | None:
    return "." if len(points[0]) <= 60 else None


def _graph(title: str, ylabel: str, palette: Palette) -> tuple[Figure, Axes]:
    figure = Figure(
        figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, facecolor=palette.background, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(palette.background)
    axes.set_title(title, color=palette.text, loc="left", fontsize=11)
    axes.set_xlabel("step", color=palette.text)
    axes.set_ylabel(ylabel, color=palette.text)
    axes.tick_params(colors=palette.text)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=palette.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(palette.text)
    return figure, axes


def _finish(axes: Axes, palette: Palette, *, steps: list[int], legend: bool) -> None:
    axes.set_xlim(0, max([1, *steps]) * 1.03)
    if not steps:
        axes.text(
            0.5,
            0.5,
            "nothing was logged",
            color=palette.text,
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
    elif legend:
        axes.legend(facecolor=palette.background, edgecolor=palette.grid, labelcolor=palette.text)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(
        content, format="png", metadata={"Software": None}
    )  # equal runs give equal bytes
    return content.getvalue()
