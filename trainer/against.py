"""What an adapter is compared with: its base, or another adapter for the same base that talks by the same template.

It finds and checks the other one, and switches a loaded model to it. It measures nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.adapters import FoundAdapter, find_adapter
from trainer.errors import ConfigError

BASE = "base"  # no adapter's name: it is reserved for the model without one
TUNED, OTHER = (
    "default",
    "against",
)  # PEFT's names of the adapters in one model; its own for the first is "default"


def find_against(given: str, adapter: FoundAdapter, base: str, volume: Path) -> FoundAdapter | None:
    """The adapter that `given` names as `find_adapter` takes it; None for `base`. base: what both are evaluated on.

    Raises ConfigError if there is none, or if it is not comparable with `adapter`: the same version, another base,
    another chat template.
    """
    if given == BASE:
        return None
    other = find_adapter(given, volume)
    if other.folder == adapter.folder:
        raise ConfigError(
            f"--against {given} is the same version as --adapter: name another one, or base."
        )
    if not _same_base(adapter, other, base):
        raise ConfigError(
            f"{other.folder} belongs to another base ({_base(other)}) than {adapter.folder} ({_base(adapter)}): "
            "compare adapters of one base."
        )
    if _template(other) != _template(adapter):
        raise ConfigError(
            f"{other.folder} was trained with another chat template than {adapter.folder}, so that the same rows are "
            "other tokens to it: compare adapters of one template."
        )
    return other


def was_held_out(adapter: FoundAdapter, other: FoundAdapter) -> bool:
    """Whether the rows that `adapter`'s recipe holds out were held out from `other` too: both recipes' data agree."""
    mine, theirs = (found.manifest.get("recipe") or {} for found in (adapter, other))
    return "data" in mine and mine["data"] == theirs.get("data")


@contextmanager
def reference(model: Any, other: FoundAdapter | None) -> Iterator[None]:
    """While entered, `model` (a PeftModel that holds both adapters) is what the tuned one is compared with."""
    if other is None:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(OTHER)
    try:
        yield
    finally:
        model.set_adapter(TUNED)


def _same_base(adapter: FoundAdapter, other: FoundAdapter, base: str) -> bool:
    """By the weights where both say which, else by name."""
    digests = [found.manifest.get("base", {}).get("weights_digest") for found in (adapter, other)]
    if all(digests):
        return bool(digests[0] == digests[1])
    return bool((_base_names(adapter) | {base}) & _base_names(other))


def _base_names(adapter: FoundAdapter) -> set[str]:
    """An unpublished adapter only names the copy that it was trained on."""
    base = adapter.manifest.get("base")
    if base is None:
        return {adapter.base_id} - {""}
    return {base["id"], base["trained_on"]["id"]}


def _base(adapter: FoundAdapter) -> str:
    digest = adapter.manifest.get("base", {}).get("weights_digest")
    return f"{adapter.base_id or 'not named'}, weights {digest[:19]}" if digest else adapter.base_id


def _template(adapter: FoundAdapter) -> str:
    path = adapter.folder / "chat_template.jinja"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): nothing says which template the adapter was trained with."
        ) from None
