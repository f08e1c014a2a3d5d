"""The plan's estimates against what was measured, and the traps it finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.__main__ import main
from trainer.config import Recipe
from trainer.estimate import Shape, memory
from trainer.recipe_file import dump_recipe, load_recipe
from trainer.shape import SHAPES
from trainer.summary import magnitude, storage

LLAMA = SHAPES["llama-3.2-3b"]
SHAPE = Shape(
    layers=LLAMA["num_hidden_layers"],
    width=LLAMA["hidden_size"],
    heads=LLAMA["num_attention_heads"],
    kv_heads=LLAMA["num_key_value_heads"],
    head_dim=LLAMA["head_dim"],
    inner=LLAMA["intermediate_size"],
    vocabulary=LLAMA["vocab_size"],
    tied=True,
)
GIB = 2**30 / 1e9


def published(*changes: str) -> Recipe:
    return load_recipe("llama-3.2-3b", changes)


def test_the_parameters_are_counted_exactly() -> None:
    assert SHAPE.linear_parameters + SHAPE.other_parameters == 3_212_749_824
    assert SHAPE.adapter_parameters(published()) == 24_313_856


@pytest.mark.parametrize(
    ("changes", "backend", "padding_free", "measured_gb"),
    [
        # Peaks that the allocator reserved on H100s: an earlier measurement of the same three ways, and
        # docs/results/training.md.
        ([], "unsloth", False, 3.80 * GIB),
        ([], "peft", False, 6.10 * GIB),
        (["model.load_in_4bit=false"], "peft", True, 9.68 * GIB),
        ([], "unsloth", False, 4.23),
        (["training.optim=adamw_torch_fused"], "peft", True, 6.40),
        (["training.optim=adamw_torch_fused", "model.load_in_4bit=false"], "peft", True, 10.62),
        (
            ["training.optim=adamw_torch_fused", "training.gradient_checkpointing=false"],
            "peft",
            True,
            25.96,
        ),
    ],
)
def test_memory_is_estimated_within_15_percent(
    changes: list[str], backend: str, padding_free: bool, measured_gb: float
) -> None:
    parts = memory(published(*changes), SHAPE, backend=backend, padding_free=padding_free)
    assert parts.training == pytest.approx(measured_gb, rel=0.15)


def test_a_plan_is_printed_with_every_trap(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(
        tiny_model,
        tmp_path,
        training={"learning_rate": 1e-6, "warmup_steps": 50, "max_steps": 12},
        evaluation={"eval_steps": 1, "curve_rows": 64},
    )
    (tmp_path / "mine.yaml").write_text(dump_recipe(recipe))
    page = tmp_path / "pages" / "plan.html"
    assert main(["plan", "--recipe", str(tmp_path / "mine.yaml"), "--html", str(page)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "never reaches its peak" in printed
    assert "training.learning_rate (1e-06) is outside" in printed
    assert "The evaluations cost" in printed
    assert "12 of 4 rows" in printed
    for card in ("T4", "L4", "A10G", "A100", "H100"):
        assert card in printed
    written = page.read_text()
    for text in (
        "never reaches its peak",
        "The evaluations cost",
        "H100",
        "tiny-model",
        "peak of the training",
    ):
        assert text in written
    assert "<script" not in written
    # A model of thousands of parameters has them, and its memory, in units that show them.
    for text in (written.replace("\N{NO-BREAK SPACE}", " "), printed):
        assert "0.0 GB" not in text
        assert "0 M" not in text
    assert re.search(
        r"up to [1-9][\d.]* [kM]B on the GPU", written.replace("\N{NO-BREAK SPACE}", " ")
    )
    assert "GPU memory in MB" in printed


@pytest.mark.parametrize(
    ("value", "parameters", "bytes_"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (163_840, "164 K", "164 kB"),
        (999_999, "1.00 M", "1.00 MB"),
        (134_515_008, "135 M", "135 MB"),
        (24_313_856, "24.3 M", "24.3 MB"),
        (3_212_749_824, "3.21 B", "3.21 GB"),
        (float("nan"), "–", "–"),
    ],
)
def test_numbers_are_rounded_to_units_that_show_them(
    value: float, parameters: str, bytes_: str
) -> None:
    assert magnitude(value).replace("\N{NO-BREAK SPACE}", " ") == parameters
    assert storage(value / 1e9).replace("\N{NO-BREAK SPACE}", " ") == bytes_
