"""What makes two starts the same run: recipe, data, template, base and processes. A resume compares them all.

The training library compares almost nothing of this, and goes on with another model or other data without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import Recipe
from trainer.dataset import Row
from trainer.durable import write_text
from trainer.errors import ConfigError

FILE = "identity.json"
# What may differ: it changes what is told of a run, or how a step is computed, but not what is learned.
FREE = frozenset(
    {
        "description",
        "answers",
        "evaluation.float_base_rows",
        "evaluation.batch_size",
        "training.per_device_train_batch_size",  # their product counts, as rows per step
        "training.gradient_accumulation_steps",
        "training.max_pass_tokens",
        "training.cuda_graphs",
        "training.save_steps",
        "training.report_to",
    }
)

Facts = dict[str, str]


def recipe_facts(recipe: Recipe) -> Facts:
    """The settings that decide what is learned, by dotted key."""
    facts: Facts = {}
    _flatten(recipe.model_dump(mode="json"), "", facts)
    training = recipe.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    facts["rows per step (batch size × accumulation)"] = str(rows)
    return facts


def data_fingerprint(rows: Sequence[Row]) -> str:
    """sha256 over the tokens and labels of the training rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.encoded.input_ids, row.encoded.labels]).encode())
    return f"sha256:{digest.hexdigest()}"


def text_fingerprint(text: str) -> str:
    """sha256 of a text."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def check_identity(folder: Path, facts: Mapping[str, str]) -> None:
    """Compare with what an earlier start wrote into `folder`; write it if there was none.

    Raises ConfigError naming every difference among the keys that both know.
    """
    path = folder / FILE
    earlier = read_identity(folder)
    if earlier is None:
        path.unlink(missing_ok=True)  # torn
        write_text(path, json.dumps(dict(sorted(facts.items())), indent=1) + "\n")
        return
    if differences := differing(earlier, facts):
        raise ConfigError(
            f"{folder} holds another run: {'; '.join(differences)}. Start with the same settings to go on with it, or "
            "choose another --output."
        )


def read_identity(folder: Path) -> Facts | None:
    """What an earlier start wrote; None if nothing whole."""
    try:
        facts = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def differing(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`key: then -> now` for the keys that both know."""
    return [
        f"{key}: {earlier[key]} -> {now[key]}"
        for key in earlier
        if key in now and earlier[key] != now[key]
    ]


def _flatten(value: Any, key: str, facts: Facts) -> None:
    if key in FREE:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _flatten(inner, f"{key}.{name}" if key else name, facts)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        facts[f"{key} (how many)"] = str(len(value))
        for index, inner in enumerate(value):
            _flatten(inner, f"{key}.{index}", facts)
    else:
        facts[key] = json.dumps(value)
