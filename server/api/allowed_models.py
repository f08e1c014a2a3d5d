"""The models that a caller may use. To whoever may not use one, it does not exist: not in a list, not in an error."""

from __future__ import annotations

from server.api.caller import Caller
from server.errors import ModelNotFoundError
from server.types import Catalogue, ModelInfo, ServedModel


def find_model(catalogue: Catalogue, caller: Caller, name: str) -> ServedModel:
    """Raises ModelNotFoundError, the same whether the model is not there or not this caller's."""
    try:
        model = catalogue.find(name)
    except ModelNotFoundError:
        model = None
    if model is None or not caller.may_use(model.id):
        names = [info.id for info in list_models(catalogue, caller) if "@" not in info.id]
        raise ModelNotFoundError(name, names)
    return model


def list_models(catalogue: Catalogue, caller: Caller) -> list[ModelInfo]:
    return [info for info in catalogue.list() if caller.may_use(info.id)]
