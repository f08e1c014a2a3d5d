"""Whether a recipe's rows are laid end to end on this machine.

Decided before a backend is chosen, so transformers is imported only where the answer needs its attention.
"""

from __future__ import annotations

from functools import lru_cache

from trainer.config import Recipe
from trainer.errors import ConfigError
from trainer.machine import Machine


def wants_padding_free(recipe: Recipe, machine: Machine) -> bool:
    """What training.padding_free comes to. Raises ConfigError for `always` where it cannot be fast."""
    wanted = recipe.training.padding_free
    if wanted == "never" or recipe.training.backend == "unsloth":
        return False
    if not machine.has_cuda:
        return wanted == "always"
    problem = padding_free_problem(machine)
    if problem and wanted == "always":
        raise ConfigError(f"training.padding_free: always: {problem}; use auto or never.")
    return problem is None


@lru_cache(maxsize=4)
def padding_free_problem(machine: Machine) -> str | None:
    """Why rows cannot be laid end to end on a CUDA machine; None if they can."""
    from trainer.varlen import kernel_problem  # noqa: PLC0415 (runs the kernel)

    return kernel_problem(machine)
