"""Reads a recipe: YAML file or shipped name, `--set` overrides, validation with errors that name the nearest key.

It knows the shape of `config.Recipe` only through pydantic.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from trainer.config import Recipe
from trainer.errors import ConfigError

SHIPPED = Path(__file__).parent / "recipes"


class _Loader(yaml.SafeLoader):
    """YAML with the floats people write: in YAML 1.1 `2e-5` is a string, since it has no dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the trainer, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe given by path or by shipped name. Raises ConfigError if there is neither."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise ConfigError(
        f"There is no recipe file {name_or_path!r}, and no shipped recipe of that name. "
        f"Shipped: {', '.join(shipped)}."
    )


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The validated recipe with `key.path=value` overrides applied in order (values are YAML).

    A list item is addressed by its index: `data.sources.0.location=chats.jsonl`.
    Raises ConfigError with one line per mistake.
    """
    path = find_recipe(name_or_path)
    values = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a recipe: its top level must be a mapping of sections.")
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path.name)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise ConfigError(f"{where} is not valid YAML: {line}") from None


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override!r} is not of the form key=value, such as model.base=FOLDER."
        )
    value = _parse(text, f"--set {key}")
    *parents, last = key.split(".")
    target: Any = values
    for depth, part in enumerate(parents):
        if isinstance(target, list):
            target = target[_position(target, part, key)]
        else:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        if not isinstance(target, dict | list):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f"--set {key}: {where} is a single value and has no keys below it.")
    if isinstance(target, list):
        target[_position(target, last, key)] = value
    else:
        target[last] = value


def _position(items: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError(f"--set {key}: {part!r} is not an index of a list of {len(items)} items.")
    return int(part)


def _explain(error: ValidationError, file: str) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key} is not a recipe key.{_suggestion(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing; give it in the recipe or with --set {key}=VALUE.")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = (
                ""
                if isinstance(problem["input"], dict | list)
                else f" (given: {problem['input']!r})"
            )
            lines.append(f"{key or 'the recipe'}: {message[0].lower() + message[1:]}{given}.")
    return f"{file}: " + "\n".join(dict.fromkeys(lines))


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """All keys of a recipe, dotted; the items of a list of sections appear under `*`."""
    keys = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        keys.append(key)
        for section in _sections(field.annotation):
            inner = key if section is field.annotation else f"{key}.*"
            keys += known_keys(section, f"{inner}.")
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _suggestion(location: tuple[int | str, ...]) -> str:
    given = ".".join("*" if isinstance(part, int) else part for part in location)
    keys = known_keys()
    # First among the siblings, by name; then anywhere, so that `learning_rate` at the top finds its section.
    parent, _, name = given.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    anywhere = {key.rpartition(".")[2]: key for key in keys}
    for names, cutoff in ((siblings, 0.6), (anywhere, 0.6), (siblings or anywhere, 0.0)):
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
        if nearest:
            shown = names[nearest[0]]
            for part in location:
                if isinstance(part, int):
                    shown = shown.replace("*", str(part), 1)
            return f" Did you mean {shown}?"
    return ""
