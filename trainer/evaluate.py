"""Is an adapter better than its base, or than another adapter? On rows it never saw, on the float32 base.

The rows are those that the adapter's own recipe held out. Answers come from this process, or from a running server.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.adapters import FoundAdapter
from trainer.against import BASE, OTHER, reference, was_held_out
from trainer.config import Recipe
from trainer.conversation import Message
from trainer.dataset import Row
from trainer.errors import ConfigError
from trainer.progress import Reporter
from trainer.scores import Score, compare, repetition
from trainer.served import Answerer, served
from trainer.split import spread


def recipe_of(adapter: FoundAdapter, base: str, overrides: dict[str, Any]) -> Recipe:
    """The recipe an adapter was trained with, on `base`. overrides: source name -> location.

    Raises ConfigError for an adapter that was not published.
    """
    values = json.loads(json.dumps(adapter.manifest.get("recipe") or {}))
    if not values:
        raise ConfigError(
            f"{adapter.folder} was not published by this trainer: it names no recipe."
        )
    values["model"] |= {"base": base, "base_id": adapter.base_id, "load_in_4bit": False}
    values["model"]["dtype"] = "auto"
    for source in values["data"]["sources"]:
        source["location"] = overrides.get(source["name"], source["location"])
    return Recipe.model_validate(values)


def evaluate(
    adapter: FoundAdapter,
    recipe: Recipe,
    reporter: Reporter,
    *,
    against: FoundAdapter | None,
    rows: int,
    answers: int,
    max_new_tokens: int,
    server: str | None,
) -> tuple[Score, ...]:
    """Loss by source and of all; stop rate and repetition of answers. rows, answers: at most so many.

    against: as `find_against` gives it; None: the base. server: where answers are asked for, as the adapter's version
    and as what it is compared with; None: in this process.
    Raises ConfigError and DataError, and RetryableError for a server that does not answer.
    """
    import torch  # noqa: PLC0415 (seconds to import)
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from trainer.prepare import prepare_data  # noqa: PLC0415

    if against is not None and not was_held_out(adapter, against):
        reporter.warn(
            f"Nothing says that {against.served_name} was trained with the same rows held out (its recipe's data "
            "differ, or it has none): it may have been trained on some of these, which flatters it."
        )
    template, data = prepare_data(recipe, reporter)
    sources = [row.source for row in data.test]
    chosen = [data.test[index] for index in spread(sources, rows, recipe.data.seed)]
    few = [chosen[index] for index in spread([row.source for row in chosen], answers, 0)]
    answered: list[Score] = []
    if server is not None:  # before the losses, which may take hours: it may be away
        other = against.served_name if against else BASE
        ask = served(server, adapter.served_name, other, max_new_tokens)
        answered = _answer_scores(few, ask, reporter)
    try:
        base = AutoModelForCausalLM.from_pretrained(recipe.model.base, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The base {recipe.model.base} could not be loaded: {str(error).splitlines()[0]} Give a folder or a hub "
            "id within reach with --base."
        ) from error
    model = PeftModel.from_pretrained(base, adapter.folder)
    if against is not None:
        model.load_adapter(against.folder, OTHER)
    model.eval()
    scores = _losses(model, against, chosen, template.tokenizer.pad_token_id, reporter)
    if server is None:
        stops = template.stop_token_ids(base.generation_config.eos_token_id)
        ask = _local(model, against, template, stops, max_new_tokens)
        answered = _answer_scores(few, ask, reporter)
    return (*scores, *answered)


def _losses(
    model: Any,
    against: FoundAdapter | None,
    rows: Sequence[Row],
    pad_token_id: int,
    reporter: Reporter,
) -> list[Score]:
    from trainer.backends.peft import PeftBackend  # noqa: PLC0415
    from trainer.losses import LossMeter, total  # noqa: PLC0415

    meter = LossMeter(PeftBackend(), model, "float32", pad_token_id, 1)
    bar = reporter.bar("Losses", len(rows))
    base: list[float] = []
    tuned: list[float] = []
    tokens: list[float] = []
    for row in rows:
        after = total(meter.measure([row]))
        with reference(model, against):
            before = total(meter.measure([row]))
        base.append(before.mean)
        tuned.append(after.mean)
        tokens.append(after.tokens)
        bar.advance()
    scores = []
    for source in [*sorted({row.source for row in rows}), "all"]:
        part = [i for i, row in enumerate(rows) if source in (row.source, "all")]
        first, second, weights = ([values[i] for i in part] for values in (base, tuned, tokens))
        name = f"held-out loss, {source}"
        scores.append(compare(name, first, second, weights, lower_is_better=True))
    return scores


def _answer_scores(rows: Sequence[Row], ask: Answerer, reporter: Reporter) -> list[Score]:
    if not rows:
        return []
    bar = reporter.bar("Answers", 2 * len(rows))
    answers: dict[bool, list[tuple[str, bool]]] = {False: [], True: []}
    for row in rows:
        asked = [m for m in row.conversation.messages if m["role"] != "assistant"]
        first = next(i for i, m in enumerate(asked) if m["role"] == "user")
        for tuned in (False, True):
            answers[tuned].append(ask(asked[: first + 1], tuned))
            bar.advance()
    stopped, repeated = (
        [[float(ended) for _, ended in answers[tuned]] for tuned in (False, True)],
        [[repetition(text) for text, _ in answers[tuned]] for tuned in (False, True)],
    )
    return [
        compare("answers that end by themselves", *stopped, lower_is_better=False),
        compare("repetition in answers", *repeated, lower_is_better=True),
    ]


def _local(
    model: Any, against: FoundAdapter | None, template: Any, stops: Sequence[int], most: int
) -> Answerer:
    from contextlib import nullcontext  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from trainer.answers import greedy  # noqa: PLC0415

    def ask(messages: Sequence[Message], tuned: bool) -> tuple[str, bool]:
        with torch.no_grad(), nullcontext() if tuned else reference(model, against):
            text, _, finish = greedy(model, template.prompt_ids(messages), most, stops, template)
        return text, finish == "stop"

    return ask


def write_scores(
    path: Path, adapter: FoundAdapter, against: FoundAdapter | None, scores: Sequence[Score]
) -> None:
    """The scores as JSON; `base` in them is what the adapter was compared with. Raises OSError."""
    from dataclasses import asdict  # noqa: PLC0415

    rows = [asdict(score) | {"verdict": score.verdict} for score in scores]
    compared = {
        "adapter": str(adapter.folder),
        "against": str(against.folder) if against else BASE,
        "scores": rows,
    }
    path.write_text(json.dumps(compared, indent=1) + "\n", "utf-8")
