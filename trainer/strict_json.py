"""Writes values as JSON that every reader accepts: no NaN or Infinity, no Python-only types."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping
from typing import Any


def strict_json(value: Any) -> str:
    """`value` as indented JSON ending in a newline. Dataclasses become objects, numbers that are not finite null.

    Anything JSON has no word for (a path, an enum, a dtype) is written as its text, so that no
    setting of a run is lost for being of an odd type.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):  # numpy's floats, too
        return float(value) if math.isfinite(value) else None
    return str(value)
