"""A whole run on the CPU with a tiny random model: it learns, it records, and PEFT loads what it wrote."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.errors import ConfigError, TrainingError
from trainer.recipe_file import load_recipe
from trainer.request import RunRequest


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunRequest, Any, list[str]]:
    """One run, published; its request, result and what it said."""
    from trainer.run import run

    folder = tmp_path_factory.mktemp("run")
    request = RunRequest(
        recipe=tiny_recipe(tiny_model, folder, rows=60),
        output=folder / "out",
        name="tiny",
        adapters=folder / "adapters",
        command="python -m trainer train",
    )
    recorder = Recorder()
    return request, run(pickle.loads(pickle.dumps(request)), recorder), recorder.lines


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"Warning: {line}")

    def bar(self, label: str, total: int) -> Recorder:
        return self

    def advance(self, note: str = "", count: int = 1) -> None:
        self.steps += count


def test_it_learns(finished: Any) -> None:
    record = finished[1].record
    everything = next(loss for loss in record.losses if loss.source == "all")
    assert everything.tuned < 0.8 * everything.base
    train_losses = [p.train_loss for p in record.history if p.train_loss is not None]
    assert train_losses[-1] < 0.8 * train_losses[0]
    assert record.final_train_loss == train_losses[-1]


def test_the_curve_is_drawn_from_start_to_end(finished: Any) -> None:
    record = finished[1].record
    assert [p.step for p in record.history if p.eval_loss is not None] == [0, 5, 10, 12]
    assert [p.step for p in record.history if p.train_loss is not None] == [1, 2, 4, 6, 8, 10, 12]
    assert record.steps == 12


def test_the_learning_rates_are_those_used(finished: Any) -> None:
    recipe, history = finished[0].recipe, finished[1].record.history
    peak, warmup, steps = recipe.training.learning_rate, 2, 12
    for point in history[1:]:
        done = point.step - 1
        expected = peak * (done / warmup if done < warmup else (steps - done) / (steps - warmup))
        assert point.learning_rate == pytest.approx(expected)


def test_tokens_are_counted_without_padding(finished: Any, tiny_model: Path) -> None:
    record = finished[1].record
    # 12 steps of 4 rows are 48 rows: all train rows once.
    (count,) = record.sources
    assert count.train_rows == 48
    assert record.train_tokens_seen == count.train_tokens
    assert record.epochs == pytest.approx(1)
    assert record.tokens_per_second == pytest.approx(
        record.train_tokens_seen / record.train_seconds
    )


def test_the_record_answers_a_readers_questions(finished: Any) -> None:
    request, result, _ = finished
    record = result.record
    assert record.backend == "peft"
    assert record.base.id == "tiny-model"
    assert record.base.architecture == "LlamaForCausalLM"
    assert record.base.weights_digest.startswith("sha256:")
    assert record.base.quantization is None
    assert record.recipe == request.recipe.model_dump(mode="json")
    arguments = record.resolved_arguments
    assert arguments["dtype"] == "float32"
    assert arguments["learning_rate"] == 1e-2
    assert arguments["use_cpu"] is True
    assert (arguments["bf16"], arguments["fp16"]) == (False, False)
    assert {"python", "torch", "transformers", "trl", "peft"} <= set(record.versions)
    assert record.memory.peak_reserved_gb >= record.memory.start_reserved_gb > 0
    assert 0 < record.trainable_parameters < record.total_parameters
    assert record.stop_token_ids == (2,)
    assert record.wall_seconds >= record.train_seconds > 0
    (answer,) = record.answers
    assert (answer.prompt, answer.base_finish) == ("apple?", "length")
    assert answer.base_tokens == 5
    assert answer.base != answer.tuned
    json.dumps(record.resolved_arguments, allow_nan=False)


def test_the_adapter_loads_in_peft_and_gives_the_recorded_loss(
    finished: Any, tiny_model: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.backends.peft import PeftBackend
    from trainer.losses import LossMeter, total
    from trainer.prepare import prepare_data
    from trainer.progress import Silent

    request, result, _ = finished
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), result.adapter
    )
    _, data = prepare_data(request.recipe, Silent())
    tuned = total(LossMeter(PeftBackend(), model, "float32", 0, 4).measure(data.test)).mean
    assert tuned == pytest.approx(result.record.losses[-1].tuned, rel=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(result.adapter)
    assert tokenizer.chat_template == (result.adapter / "chat_template.jinja").read_text()


def test_it_is_published_and_reported(finished: Any) -> None:
    request, result, lines = finished
    assert (request.adapters / "tiny" / "latest").resolve() == result.published.resolve()
    manifest = json.loads((result.published / "manifest.json").read_text())
    assert manifest["base"]["weights_digest"] == result.record.base.weights_digest
    assert (request.output / "report" / "report.html").is_file()
    assert load_recipe(str(request.output / "recipe.yaml")) == request.recipe
    assert any("Published:" in line for line in lines)


def test_a_run_is_not_overwritten(finished: Any) -> None:
    from trainer.run import run

    with pytest.raises(ConfigError, match="holds a complete run already"):
        run(finished[0])


def test_the_same_recipe_gives_the_same_run(finished: Any, tmp_path: Path) -> None:
    from trainer.run import run

    request = finished[0]
    again = run(RunRequest(request.recipe, tmp_path / "again", "tiny", None)).record
    for first, second in zip(finished[1].record.history, again.history, strict=True):
        assert first.train_loss == second.train_loss
        assert first.eval_loss == second.eval_loss
    assert finished[1].record.losses == again.losses
    assert not (tmp_path / "adapters").exists()


def test_a_diverged_run_is_not_saved(tiny_model: Path, tmp_path: Path) -> None:
    from trainer.run import run

    recipe = tiny_recipe(tiny_model, tmp_path, training={"learning_rate": 1e30, "max_steps": 4})
    with pytest.raises(TrainingError, match="not a number at step"):
        run(RunRequest(recipe, tmp_path / "out", "tiny", tmp_path / "adapters"))
    assert not (tmp_path / "out" / "adapter").exists()
    assert not (tmp_path / "adapters").exists()


def test_a_cuda_recipe_says_so_in_one_line_and_names_the_one_that_works(tmp_path: Path) -> None:
    import torch

    from trainer.run import run

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    request = RunRequest(load_recipe("llama-3.2-3b"), tmp_path, "llama", None)
    with pytest.raises(ConfigError) as error:
        run(request)
    message = str(error.value)
    assert "needs a CUDA GPU (model.load_in_4bit: true, training.optim: adamw_8bit)" in message
    assert "smollm2-cpu-demo works on this machine" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"model": {"base_id": None}}, "tiny", "--set model.base_id=ID"),
        ({"model": {"base_id": "some/base-unsloth-bnb-4bit"}}, "tiny", "is a quantised copy"),
        ({"model": {"dtype": "float16"}}, "tiny", "needs a CUDA GPU"),
        ({"training": {"backend": "unsloth"}}, "tiny", "needs a CUDA GPU"),
        (
            {"lora": {"target_modules": ["no_such_layer"]}},
            "tiny",
            "lora.target_modules does not fit",
        ),
        ({"model": {"base": "/no/such/folder"}}, "tiny", "model.base=…"),
        ({"model": {"base": "no-such/hub-id"}}, "tiny", "model.base=…"),
        ({}, "base", "cannot be an adapter's name"),
        ({}, "../up", "cannot be an adapter's name"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], name: str, message: str
) -> None:
    from trainer.config import Recipe
    from trainer.run import run

    values = tiny_recipe(tiny_model, tmp_path).model_dump(mode="json")
    for section, keys in changes.items():
        values[section] |= keys
    request = RunRequest(Recipe.model_validate(values), tmp_path / "out", name, None)
    with pytest.raises(ConfigError) as error:
        run(request)
    assert message in str(error.value)
