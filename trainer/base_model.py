"""Which base an adapter belongs to: by name, commit and weights, whatever copy of it was trained on."""

from __future__ import annotations

from trainer.backends.base import LoadedModel
from trainer.config import Recipe
from trainer.hub import commit_of
from trainer.record import BaseModel


def base_model(recipe: Recipe, loaded: LoadedModel) -> BaseModel:
    digest = None
    if loaded.float_folder is not None:
        from trainer.weights import weights_digest  # noqa: PLC0415

        digest = weights_digest(loaded.float_folder)
    revision = loaded.trained_on_revision
    if loaded.trained_on_id != recipe.base_id:  # trained on a copy; the adapter names the original
        asked = recipe.model.revision if recipe.model.base_id is None else None
        revision = commit_of("model", recipe.base_id, asked)
    return BaseModel(
        id=recipe.base_id,
        revision=revision,
        architecture=loaded.architecture,
        weights_digest=digest,
        trained_on_id=loaded.trained_on_id,
        trained_on_revision=loaded.trained_on_revision,
        quantization=loaded.quantization,
    )
