"""Recipes: what ships is valid and explained, what is published is exact, and mistakes name the key that was meant."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.config import LLAMA_LINEAR_LAYERS, Recipe
from trainer.errors import ConfigError
from trainer.recipe_file import dump_recipe, known_keys, load_recipe, shipped_recipes

SHIPPED = shipped_recipes()


def test_recipes_are_shipped() -> None:
    assert set(SHIPPED) >= {"llama-3.2-3b", "llama-3.2-3b-recommended", "smollm2-cpu-demo"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_valid_and_its_header_tells_how_to_run_it(name: str) -> None:
    load_recipe(name)
    header = SHIPPED[name].read_text().split("\ndescription:")[0]
    assert f"python -m trainer train --recipe {name} --output " in header
    assert "Runs on:" in header
    assert "Time:" in header


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_gives_and_explains_every_key(name: str) -> None:
    text = SHIPPED[name].read_text()
    given = {key for key in _keys(yaml.safe_load(text)) if ".roles." not in key}
    assert given == set(known_keys())
    for section, block in _blocks(text).items():
        commented = False
        for line in block:
            words = line.strip().removeprefix("- ")
            if words.startswith("#"):
                commented = True
            elif ":" in words and not words.endswith(":") and not line.strip().startswith("- "):
                key = words.partition(":")[0]
                # One comment may explain two keys that only make sense together.
                assert commented, f"{section}: {key} has no comment above it"
                commented = False


def _keys(value: Any, prefix: str = "") -> list[str]:
    if isinstance(value, list):
        return [
            key for item in value if isinstance(item, dict) for key in _keys(item, f"{prefix}*.")
        ]
    keys = []
    for name, inner in value.items():
        keys.append(f"{prefix}{name}")
        if isinstance(inner, dict | list):
            keys += _keys(inner, f"{prefix}{name}.")
    return keys


def _blocks(text: str) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            name = line.partition(":")[0]
            blocks[name] = []
        elif name and line.strip():
            blocks[name].append(line)
    return blocks


def test_published_recipe_to_the_letter() -> None:
    recipe = load_recipe("llama-3.2-3b")
    model, lora, training = recipe.model, recipe.lora, recipe.training
    assert model.base == recipe.base_id == "unsloth/Llama-3.2-3B-Instruct"
    assert (model.max_seq_length, model.dtype, model.load_in_4bit) == (2048, "auto", True)
    assert (lora.r, lora.alpha, lora.dropout, lora.rslora) == (16, 16, 0, False)
    assert lora.target_modules == LLAMA_LINEAR_LAYERS
    assert len(LLAMA_LINEAR_LAYERS) == 7
    assert [(s.location, s.kind, s.samples) for s in recipe.data.sources] == [
        ("mlabonne/FineTome-100k", "sharegpt", 15000),
        ("WizardLMTeam/WizardLM_evol_instruct_70k", "instruction", 15000),
    ]
    assert recipe.data.test_fraction == 0.05
    assert recipe.template.name == "llama-3.1"
    assert training.per_device_train_batch_size == 4
    assert training.gradient_accumulation_steps == 4
    assert (training.max_steps, training.warmup_steps) == (40, 50)
    assert training.learning_rate == 2e-5
    assert (training.optim, training.weight_decay) == ("adamw_8bit", 0.01)
    assert (training.lr_scheduler, training.logging_steps) == ("linear", 10)
    assert recipe.evaluation.eval_steps == 10


def test_warm_up_longer_than_the_run_is_warned_about_by_name() -> None:
    (warning,) = load_recipe("llama-3.2-3b").advice()
    assert "training.warmup_steps (50)" in warning
    assert "training.max_steps (40)" in warning
    assert "never reaches its peak of 2e-05" in warning
    assert load_recipe("llama-3.2-3b-recommended").advice() == ()
    assert load_recipe("smollm2-cpu-demo").advice() == ()


def test_every_difference_of_the_recommended_recipe_is_explained() -> None:
    published = _flat(load_recipe("llama-3.2-3b").model_dump())
    recommended = _flat(load_recipe("llama-3.2-3b-recommended").model_dump())
    text = SHIPPED["llama-3.2-3b-recommended"].read_text()
    different = {key for key in published if published[key] != recommended[key]} - {"description"}
    assert different
    for key in different:
        assert f"\n#   {key} " in text, f"{key} differs without an explanation in the header"
    assert text.count("CHANGED from") == len(different)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}").items()
        }
    return {prefix.removeprefix("."): value}


def test_the_demo_recipe_needs_no_gpu() -> None:
    assert load_recipe("smollm2-cpu-demo").cuda_needs() == ()
    assert load_recipe("llama-3.2-3b").cuda_needs() == (
        "model.load_in_4bit: true",
        "training.optim: adamw_8bit",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.learning_rat=1",
            "training.learning_rat is not a recipe key. Did you mean training.learning_rate?",
        ),
        ("trainig.max_steps=1", "trainig is not a recipe key. Did you mean training?"),
        (
            "learning_rate=1",
            "learning_rate is not a recipe key. Did you mean training.learning_rate?",
        ),
        ("training.lora_r=1", "training.lora_r is not a recipe key. Did you mean"),
        (
            "data.sources.0.locaton=x",
            "data.sources.0.locaton is not a recipe key. Did you mean data.sources.0.location?",
        ),
        ("data.sources.7.location=x", "'7' is not an index of a list of 2 items"),
        ("training.max_steps", "is not of the form key=value"),
        ("training.max_steps.more=1", "training.max_steps is a single value"),
        ("training.max_steps='40'", "training.max_steps: input should be a valid integer"),
        ("training.max_steps=4.5", "training.max_steps: input should be a valid integer"),
        ("training.learning_rate='1e-4'", "training.learning_rate: input should be a valid number"),
        (
            "training.optim=adam",
            "training.optim: input should be 'adamw_8bit', 'adamw_torch' or 'adamw_torch_fused' (given: 'adam')",
        ),
        ("model.load_in_4bit=yes please", "model.load_in_4bit: input should be a valid boolean"),
        ("data.test_fraction=1", "data.test_fraction: input should be less than 1"),
        ("data.sources=[]", "data.sources: "),
        ("data.sources.0.name=all", "data.sources.0: a source cannot be named `all`"),
        ("training.max_steps=[", "--set training.max_steps is not valid YAML"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("smollm2-cpu-demo", [override])
    assert message in str(error.value)


def test_overrides_apply_in_order_and_reach_into_lists() -> None:
    recipe = load_recipe(
        "smollm2-cpu-demo",
        [
            "training.max_steps=3",
            "training.max_steps=5",
            "data.sources.0.location=a=b.jsonl",
            "training.learning_rate=3e-4",
        ],
    )
    assert recipe.training.max_steps == 5
    assert recipe.data.sources[0].location == "a=b.jsonl"
    assert recipe.training.learning_rate == 3e-4


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    # In YAML 1.1 `2e-5` is a string.
    text = SHIPPED["llama-3.2-3b"].read_text().replace("2.0e-5", "2e-5")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "mine.yaml")).training.learning_rate == 2e-5


@pytest.mark.parametrize("text", ["- a", "a: [", "", "42"])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_recipe(str(path))


def test_missing_recipe_names_the_shipped() -> None:
    with pytest.raises(ConfigError, match="smollm2-cpu-demo"):
        load_recipe("nothing")


def test_recipes_survive_a_file_and_a_pickle(tmp_path: Path) -> None:
    recipe = load_recipe("llama-3.2-3b")
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_every_setting_is_described() -> None:
    def check(model: type[Any]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"

    check(Recipe)
    for field in Recipe.model_fields.values():
        if hasattr(field.annotation, "model_fields"):
            check(field.annotation)
