"""Prints a plan."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from trainer.config import Recipe
from trainer.plan import MEMORY_PARTS, Plan, old_card
from trainer.summary import duration, memory_unit, storage


def show_plan(recipe: Recipe, plan: Plan, console: Console | None = None) -> None:
    """On standard output. Times are estimates for one card, without start-up."""
    out = console or Console()
    training = recipe.training
    table = Table(title="The run", title_justify="left", show_header=False)
    table.add_row("base", f"{recipe.base_id}: {plan.parameters:,} parameters")
    table.add_row("adapter", f"{plan.adapter_parameters:,} trained parameters")
    table.add_row("rows", f"{plan.rows:,} to train on, {plan.test_rows:,} held out")
    table.add_row("tokens of an epoch", f"{plan.epoch_tokens:,}")
    table.add_row(
        "steps",
        f"{training.max_steps} of {plan.step_rows} rows, about {plan.step_tokens:,.0f} real tokens "
        f"({plan.epochs:.2f} epochs)",
    )
    table.add_row("warm-up", f"{training.warmup_steps} steps to {training.learning_rate:g}")
    table.add_row("padding", f"{plan.padding:.2f} places per real token, where rows are padded")
    table.add_row("evaluations", f"{plan.evaluation_share:.0%} of the training's operations")
    table.add_row("disk", storage(plan.disk_gb))
    out.print(table)
    out.print(_memory_table(plan))
    times = Table(title="Time, estimated", title_justify="left")
    for column in ("card", "training", "evaluations", "rows are"):
        times.add_column(column)
    for card, (train, evaluate) in plan.seconds.items():
        packed = plan.packed_memory is not None and not old_card(card)
        times.add_row(
            card, duration(train), duration(evaluate), "end to end" if packed else "padded"
        )
    out.print(times)
    for warning in plan.warnings:
        out.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False)


def _memory_table(plan: Plan) -> Table:
    unit, factor = memory_unit(plan.largest_gb)
    table = Table(title=f"GPU memory in {unit}, estimated", title_justify="left")
    table.add_column("")
    for way in plan.ways:
        table.add_column(way, justify="right")
    ways = plan.ways.values()
    for label, name in MEMORY_PARTS:
        table.add_row(label, *(f"{getattr(way, name) * factor:.2f}" for way in ways))
    if plan.float_base_gb:
        table.add_row(
            "float32 base, after the run", *[f"{plan.float_base_gb * factor:.2f}"] * len(ways)
        )
    return table
