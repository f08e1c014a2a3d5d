"""Recipes and data for tests: a tiny random model, a few dozen short conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import Recipe

NOUNS = [
    "apple",
    "bridge",
    "cloud",
    "door",
    "engine",
    "forest",
    "garden",
    "house",
    "island",
    "jacket",
    "kitchen",
    "lamp",
]
VERBS = ["paint", "carry", "open", "follow", "study", "polish"]


def conversations(count: int) -> list[dict[str, Any]]:
    """ShareGPT rows of different lengths, no two of them alike."""
    rows = []
    for index in range(count):
        noun, verb = NOUNS[index % len(NOUNS)], VERBS[(index // len(NOUNS)) % len(VERBS)]
        turns = [
            {"from": "human", "value": f"{verb} {noun} {index} please {noun * (index % 5)}"},
            {"from": "gpt", "value": f"{noun} {index} done" + " ok" * (index % 7)},
        ]
        rows.append({"conversations": turns})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_recipe(
    model: Path,
    folder: Path,
    *,
    rows: int = 40,
    training: dict[str, Any] | None = None,
    **sections: Any,
) -> Recipe:
    """A recipe for the tiny model on `rows` conversations written into `folder`."""
    data = write_jsonl(folder / "rows.jsonl", conversations(rows))
    values: dict[str, Any] = {
        "description": "A test",
        "model": {"base": str(model), "base_id": "tiny-model", "max_seq_length": 256},
        "lora": {"r": 4},
        "data": {
            "sources": [{"name": "chats", "kind": "sharegpt", "location": str(data)}],
            "test_fraction": 0.2,
        },
        "training": {
            "backend": "peft",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "gradient_checkpointing": False,
            "logging_steps": 2,
            **(training or {}),
        },
        "evaluation": {"eval_steps": 5, "curve_rows": 4},
        "answers": {"prompts": ["apple?"], "max_new_tokens": 5},
    }
    return Recipe.model_validate(values | sections)


def prepared(recipe: Recipe) -> tuple[Any, list[Any]]:
    """The template and all rows of a recipe, not split."""
    from trainer.prepare import prepare_data
    from trainer.progress import Silent

    template, data = prepare_data(recipe, Silent())
    return template, sorted([*data.train, *data.test], key=lambda row: row.conversation.index)


def fit_once(
    recipe: Recipe, template: Any, rows: list[Any], output: Path, machine: Any = None
) -> tuple[Any, Any]:
    """Train on `rows` without an evaluation; the loaded model and the result."""
    from trainer.backends.peft import PeftBackend
    from trainer.fit import fit
    from trainer.machine import Machine, MemoryMeter
    from trainer.progress import Silent

    machine, backend = machine or Machine("cpu", "CPU"), PeftBackend()
    loaded = backend.load(recipe, machine)
    say = Silent()
    result = fit(
        recipe,
        machine,
        backend,
        loaded,
        template.tokenizer,
        rows,
        output,
        lambda: 0.0,
        MemoryMeter(machine),
        say.bar("", 1),
        say,
    )
    return loaded, result
