"""The training loss is the mean over the tokens of a step, however the step is cut into forward passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.recipes import fit_once, prepared, tiny_recipe
from trainer.machine import this_machine


def independent_loss(model: torch.nn.Module, rows: list[tuple[list[int], list[int]]]) -> float:
    """Row by row, without padding: the sum of all trained tokens' losses over their number."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for input_ids, labels in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([input_ids], device=device)).logits[0]
        log_probabilities = torch.log_softmax(logits.double(), dim=-1)
        for position, label in enumerate(labels[1:]):
            if label != -100:
                total -= float(log_probabilities[position, label])
                count += 1
    return total / count


@pytest.mark.parametrize(
    ("micro", "accumulation", "padding_free", "max_pass_tokens"),
    [
        (1, 8, "never", 8192),
        (4, 2, "never", 8192),
        (8, 1, "never", 8192),
        (4, 2, "always", 8192),
        (2, 4, "always", 150),
    ],
)
def test_first_loss_is_the_token_mean(
    tiny_model: Path,
    tmp_path: Path,
    micro: int,
    accumulation: int,
    padding_free: str,
    max_pass_tokens: int,
) -> None:
    # On a GPU the same in its own types: with padding_free through the kernel and the graphs that a run uses.
    machine = this_machine()
    dtype = "bfloat16" if machine.has_cuda else "float32"
    recipe = tiny_recipe(
        tiny_model,
        tmp_path,
        rows=8,
        training={
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": accumulation,
            "padding_free": padding_free,
            "max_pass_tokens": max_pass_tokens,
            "gradient_checkpointing": True,
            "max_steps": 1,
            "warmup_steps": 1,
        },
    )
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})})
    template, rows = prepared(recipe)
    loaded, fitted = fit_once(recipe, template, rows, tmp_path / "out", machine)
    assert loaded.padding_free == (padding_free == "always")
    with loaded.model.disable_adapter():
        expected = independent_loss(
            loaded.model, [(row.encoded.input_ids, row.encoded.labels) for row in rows]
        )
    losses = [p.train_loss for p in fitted.history if p.train_loss is not None]
    assert losses == [pytest.approx(expected, rel=1e-3 if machine.has_cuda else 1e-4)]


@pytest.mark.parametrize("float_positions", [3, 256])
def test_measured_loss_does_not_depend_on_the_batches(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float_positions: int
) -> None:
    from trainer import losses
    from trainer.backends.peft import PeftBackend
    from trainer.losses import LossMeter, total

    monkeypatch.setattr(losses, "FLOAT_POSITIONS", float_positions)

    recipe = tiny_recipe(tiny_model, tmp_path, rows=13)
    _, rows = prepared(recipe)
    backend, machine = PeftBackend(), this_machine()
    loaded = backend.load(recipe, machine)
    expected = independent_loss(
        loaded.model, [(row.encoded.input_ids, row.encoded.labels) for row in rows]
    )
    for batch_size in (1, 3, 13):
        meter = LossMeter(backend, loaded.model, loaded.dtype, 0, batch_size)
        measured = total(meter.measure(rows))
        assert measured.mean == pytest.approx(expected, rel=1e-2 if machine.has_cuda else 1e-5)
        assert measured.rows == 13
        assert measured.tokens == sum(row.encoded.trained_tokens for row in rows)
