"""What the plan said beside what happened, and memory step by step, in the record of a real run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.expectation import card_of, expectation
from trainer.machine import Machine
from trainer.request import RunRequest


def test_a_run_does_the_steps_and_tokens_that_were_planned(
    tiny_model: Path, tmp_path: Path
) -> None:
    from trainer.run import run

    recipe = tiny_recipe(tiny_model, tmp_path)
    result = run(RunRequest(recipe, tmp_path / "out", "tiny", None))
    assert result is not None
    record = result.record
    assert record.expected is not None
    assert record.expected.steps == record.steps == 12
    assert record.expected.tokens == record.train_tokens_seen
    assert record.expected.peak_gb is None  # the plan knows nothing of a CPU's memory
    curve = [(point.step, point.memory_gb) for point in record.history if point.memory_gb]
    assert [step for step, _ in curve] == list(range(1, 13))
    assert all(0.05 < held <= record.memory.peak_reserved_gb * 1.01 for _, held in curve)
    assert all(point.allocated_gb is None for point in record.history)
    assert (tmp_path / "out" / "report" / "memory.png").is_file()


def test_on_a_gpu_the_plan_has_time_and_memory_too(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    from trainer.prepare import prepare_data
    from trainer.progress import Silent

    recipe = tiny_recipe(tiny_model, tmp_path)
    _, data = prepare_data(recipe, Silent())
    config = AutoConfig.from_pretrained(tiny_model)
    known = expectation(
        recipe, config, data, Machine("cuda", "Tesla T4", (7, 5)), padding_free=False
    )
    assert known is not None
    assert known.card == "T4"
    assert known.train_seconds is not None
    assert known.peak_gb is not None
    assert known.step_gb is not None
    assert known.peak_gb >= known.step_gb > 0
    other = expectation(
        recipe, config, data, Machine("cuda", "NVIDIA H200", (9, 0)), padding_free=False
    )
    assert other is not None
    assert (other.card, other.train_seconds) == (None, None)
    assert other.peak_gb == known.peak_gb


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", None),
    ],
)
def test_cards_are_known_by_the_names_of_their_driver(name: str, card: str | None) -> None:
    assert card_of(name) == card
