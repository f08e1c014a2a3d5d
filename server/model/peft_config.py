"""adapter_config.json of PEFT: which modules it adapts, with which rank and scaling.

It is parsed here, against a closed list, and never by PEFT: its loader imports modules and runs regular expressions
that such a file may name. Of the expressions, those that are plain names and paths are honoured, by comparing
characters; any other is refused. It knows no tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from server.errors import AdapterError
from server.model.manifest import read_small

CONFIG_FILE = "adapter_config.json"

HONOURED = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "rank_pattern",
     "alpha_pattern", "layers_to_transform", "layers_pattern"}
)  # fmt: skip
# Ways to begin that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change its weights,
# so that the adapter fits a base that is not ours.
HARMLESS_INITS = (True, "gaussian", "orthogonal", "eva", "mica")
# Without any effect on a trained adapter's output. Any other key must be empty, false or absent.
WITHOUT_EFFECT = frozenset(
    {
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
# A name or path as it stands, or as PEFT writes it: with \\. for a dot, after .*\\. for "at the end of a path".
_PLAIN = re.compile(r"\^?(?:\.\*\\\.)?(?:[A-Za-z0-9_.]|\\[.\-])+\$?")
ANYTHING = ".*\\."
MAX_RANK = 65536
_N = TypeVar("_N", int, float)


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What the configuration asks for. Module paths are the base's: model.layers.0.self_attn.q_proj."""

    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers: frozenset[int] | None = None  # None: all
    layers_patterns: tuple[str, ...] = ()

    def adapts(self, path: str) -> bool:
        """Whether PEFT puts an adapter on this module of a decoder layer."""
        if _is_named(path, self.excluded):
            return False
        if path in self.targets:
            return True  # PEFT asks for the layer only where the end of a path matches
        return _is_named(path, self.targets) and self._has_layer(path)

    def _has_layer(self, path: str) -> bool:
        if self.layers is None:
            return True
        match = re.match(r"(model\.layers)\.(\d+)\.", path)
        if match is None:
            return False
        patterns = self.layers_patterns
        return int(match[2]) in self.layers and (
            not patterns or any(matches(p, match[1]) for p in patterns)
        )

    def rank_of(self, path: str) -> int:
        return _first(self.rank_pattern, path, self.rank)

    def scaling_of(self, path: str) -> float:
        """alpha/rank, or alpha/√rank with rsLoRA (arXiv:2312.03732)."""
        rank, alpha = self.rank_of(path), _first(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def matches(pattern: str, path: str) -> bool:
    """What PEFT's re.match(rf"(.*\\.)?({pattern})$", path) says, for the patterns that are accepted.

    Without repetition in the pattern each of its characters stands for one of the path's: itself, or any for a dot.
    """
    body = pattern.removeprefix("^").removesuffix("$")
    parts = re.findall(r"\\?.", body.removeprefix(ANYTHING))
    start = len(path) - len(parts)
    if start < 0 or (start == 0 and body.startswith(ANYTHING)):
        return False
    if start > 0 and (
        path[start - 1] != "." or (pattern.startswith("^") and not body.startswith(ANYTHING))
    ):
        return False
    return all(
        part == "." or part[-1] == char for part, char in zip(parts, path[start:], strict=True)
    )


def read_settings(path: Path) -> LoraSettings:
    """Raises AdapterError for a file that is missing or wrong, or asks for what this server does not apply."""
    try:
        fields = json.loads(read_small(path))
    except (OSError, ValueError, RecursionError):
        raise AdapterError(f"{CONFIG_FILE} is missing or not JSON") from None
    if not isinstance(fields, dict):
        raise AdapterError(f"{CONFIG_FILE} is not a JSON object")
    if fields.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type {fields.get('peft_type')!r} is not served, only LORA")
    for name, value in fields.items():
        if not (
            name in HONOURED
            or name in WITHOUT_EFFECT
            or not value
            or (name, value) == ("bias", "none")
            or (name == "init_lora_weights" and value in HARMLESS_INITS)
        ):
            raise AdapterError(
                f"{CONFIG_FILE} sets {name}={value!r}, which this server does not apply"
            )
    if fields.get("target_modules") is None:
        raise AdapterError("target_modules must be a list of names; it is None")
    return LoraSettings(
        rank=_rank("r", fields.get("r")),
        alpha=_number("lora_alpha", fields.get("lora_alpha")),
        rslora=bool(fields.get("use_rslora")),
        targets=_names("target_modules", fields.get("target_modules")),
        excluded=_names("exclude_modules", fields.get("exclude_modules") or []),
        rank_pattern={k: _rank(k, v) for k, v in _patterns("rank_pattern", fields)},
        alpha_pattern={k: _number(k, v) for k, v in _patterns("alpha_pattern", fields)},
        layers=_layers(fields.get("layers_to_transform")),
        layers_patterns=_layers_patterns(fields.get("layers_pattern")),
    )


def _first(patterns: Mapping[str, _N], path: str, default: _N) -> _N:
    return next((value for pattern, value in patterns.items() if matches(pattern, path)), default)


def _is_named(path: str, names: Iterable[str]) -> bool:
    """PEFT matches a name by its end, at a dot."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _rank(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_RANK:
        raise AdapterError(f"{CONFIG_FILE} has {name}={value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_RANK:
        raise AdapterError(f"{CONFIG_FILE} has {name}={value!r}")
    return float(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        # A string would be a regular expression, which PEFT runs over all names of the model.
        raise AdapterError(f"{name} must be a list of names; it is {value!r}")
    return tuple(value)


def _patterns(name: str, fields: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{CONFIG_FILE} has {name}={value!r}")
    for pattern in value:
        _check_plain(name, pattern)
    return value.items()


def _layers(value: Any) -> frozenset[int] | None:
    layers = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    if layers is None or layers == []:
        return None  # as PEFT reads it
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise AdapterError(f"{CONFIG_FILE} has layers_to_transform={value!r}")
    return frozenset(layers)


def _layers_patterns(value: Any) -> tuple[str, ...]:
    patterns = _names(
        "layers_pattern", [value] if isinstance(value, str) and value else value or []
    )
    for pattern in patterns:
        _check_plain("layers_pattern", pattern)
    return patterns


def _check_plain(name: str, pattern: str) -> None:
    if _PLAIN.fullmatch(pattern) is None:
        raise AdapterError(
            f"{name} has {pattern!r}: a regular expression, which this server does not run;"
            " plain module names and paths are honoured"
        )
