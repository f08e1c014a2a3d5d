"""Chooses the backend for a recipe on this machine, or says which recipe works here."""

from __future__ import annotations

from importlib.util import find_spec

from trainer.backends.base import Backend
from trainer.backends.peft import PeftBackend
from trainer.backends.unsloth import UnslothBackend
from trainer.config import Recipe
from trainer.errors import ConfigError
from trainer.machine import Machine
from trainer.padding_free import wants_padding_free
from trainer.recipe_file import load_recipe, shipped_recipes


def select_backend(recipe: Recipe, machine: Machine) -> Backend:
    """The backend to use. Raises ConfigError if this machine or its packages cannot honour the recipe."""
    needs = recipe.cuda_needs()
    if needs and not machine.has_cuda:
        raise ConfigError(
            f"This recipe needs a CUDA GPU ({', '.join(needs)}) and there is none here; the recipe "
            f"{' or '.join(cpu_recipes())} works on this machine."
        )
    has_unsloth = find_spec("unsloth") is not None
    wanted = recipe.training.backend
    if wanted == "unsloth" and not has_unsloth:
        raise ConfigError(
            "training.backend: unsloth is not installed here; install requirements/train-gpu.txt with "
            "constraints-gpu.txt, or set training.backend=peft."
        )
    if wanted == "unsloth":
        return UnslothBackend()
    if wanted == "auto" and has_unsloth and machine.has_cuda:
        if not wants_padding_free(recipe, machine):
            return UnslothBackend()
        if needs and find_spec("bitsandbytes") is None:
            return UnslothBackend()
    if needs and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"This recipe needs the package bitsandbytes ({', '.join(needs)}); install requirements/train-gpu.txt."
        )
    return PeftBackend()


def cpu_recipes() -> list[str]:
    """The shipped recipes that any machine can run."""
    return [name for name in shipped_recipes() if not load_recipe(name).cuda_needs()]
