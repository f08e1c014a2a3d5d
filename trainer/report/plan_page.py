"""Renders a plan as a page in the report's style: one file that needs no network."""

from __future__ import annotations

from pathlib import Path

from trainer.config import Recipe
from trainer.plan import MEMORY_PARTS, Plan, old_card
from trainer.report.page import flatten, page_environment
from trainer.summary import memory_unit


def render_plan(recipe: Recipe, plan: Plan) -> str:
    """The page. Times are estimates for one card, without start-up."""
    unit, factor = memory_unit(plan.largest_gb)
    cards = [
        (card, train, evaluate, plan.packed_memory is not None and not old_card(card))
        for card, (train, evaluate) in plan.seconds.items()
    ]
    return (
        page_environment()
        .get_template("plan.html.j2")
        .render(
            recipe=recipe,
            plan=plan,
            unit=unit,
            factor=factor,
            memory=[
                (
                    label,
                    [getattr(way, field) for way in plan.ways.values()],
                    field == "training",
                )
                for label, field in MEMORY_PARTS
            ],
            peak=max(way.training for way in plan.ways.values()),
            cards=cards,
            longest=max(train + evaluate for _, train, evaluate, _ in cards),
            settings=flatten(recipe.model_dump(mode="json")),
        )
    )


def write_plan(recipe: Recipe, plan: Plan, path: Path) -> None:
    """Write the page. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_plan(recipe, plan), encoding="utf-8", newline="")
