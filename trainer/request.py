"""What a run is asked to do, and everything that can be known to be wrong with it before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config import Recipe
from trainer.errors import ConfigError
from trainer.naming import is_quantised_id, name_problem
from trainer.sources import is_local


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to train and where to put it. Plain data, picklable."""

    recipe: Recipe
    output: Path
    name: str  # of the adapter
    adapters: Path | None  # the volume to publish to; None: do not publish
    command: str = ""


def check_request(request: RunRequest) -> None:
    """Make the output folder. Raises ConfigError if the request cannot be carried out."""
    if problem := name_problem(request.name):
        raise ConfigError(f"--name {problem}")
    if Path(request.recipe.model.base).is_dir() and request.recipe.model.base_id is None:
        raise ConfigError(
            "model.base is a folder, whose path means nothing elsewhere; name the model with --set model.base_id=ID."
        )
    if is_quantised_id(request.recipe.base_id):
        raise ConfigError(
            f"{request.recipe.base_id} is a quantised copy; the adapter must name the float base it is served on. "
            "Set model.base_id to it."
        )
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {request.output} cannot be made: {error.strerror}.") from None


def needs_hub(recipe: Recipe) -> bool:
    """Whether anything in the recipe has to come from the hub."""
    local = Path(recipe.model.base).is_dir()
    return not (local and all(is_local(source.location) for source in recipe.data.sources))
