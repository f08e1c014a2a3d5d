"""The rules for the names a version carries: its own and its base's (docs/contracts.md, section 1).

Asked before a run is begun and again when it is published.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = "base"  # what the server calls the model without an adapter
_QUANTISED = re.compile(
    r"(?:^|[-_.])(?:bnb|[48]-?bit|int[48]|nf4|awq|gptq)(?:[-_.]|$)", re.IGNORECASE
)


def name_problem(name: str) -> str | None:
    """Why `name` cannot be an adapter's name, and what can; None if it can."""
    if not _NAME.fullmatch(name):
        return (
            f"{name!r} cannot be an adapter's name; use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or a digit."
        )
    if name == _RESERVED:
        return f"{name!r} cannot be an adapter's name: it is reserved for the base model; choose another name."
    return None


def is_quantised_id(base_id: str) -> bool:
    """Whether a base's id, by its last part, names a quantised copy, which a CPU server cannot load."""
    return _QUANTISED.search(base_id.rsplit("/", 1)[-1]) is not None
