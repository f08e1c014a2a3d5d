"""The data stage of a recipe: its tokenizer and template, then its data. All of `prepare`, and the start of `train`."""

from __future__ import annotations

import os

from transformers import AutoTokenizer

from trainer.config import Recipe
from trainer.dataset import PreparedData, prepare
from trainer.errors import ConfigError
from trainer.prepared_cache import cache_from
from trainer.progress import Reporter
from trainer.template import ChatTemplate, template_text


def prepare_data(recipe: Recipe, reporter: Reporter) -> tuple[ChatTemplate, PreparedData]:
    """Load the template and prepare the data, passing warnings on. Raises ConfigError and DataError."""
    template = load_template(recipe)
    cache = cache_from(os.environ)
    data = prepare(recipe.data, template, recipe.model.max_seq_length, reporter, cache)
    for warning in data.warnings:
        reporter.warn(warning)
    reporter.say(f"{len(data.train)} rows to train on, {len(data.test)} held out")
    return template, data


def load_template(recipe: Recipe) -> ChatTemplate:
    """The base's tokenizer with the recipe's template. Raises ConfigError if it cannot be loaded or does not fit."""
    base = recipe.model.base
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, revision=recipe.model.revision)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The base model's tokenizer could not be loaded from {base}: {str(error).splitlines()[0]} "
            "Give a folder or a hub id within reach with --set model.base=…."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ChatTemplate(tokenizer, template_text(recipe.template.name, tokenizer))
