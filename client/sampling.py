"""The settings of an answer as text: their names, types and ranges, for flags and for /set alike."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from client.types import Sampling


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: `read` turns text into its value and raises ValueError; `range` says what it takes."""

    read: Callable[[str], Any]
    range: str
    help: str


def _number(kind: type[int] | type[float], least: float, greatest: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= greatest:
            raise ValueError
        return value

    return read


def _seed(text: str) -> int | None:
    return None if text in {"", "-", "none"} else int(text)


def _stop(text: str) -> tuple[str, ...]:
    """One string, or several separated by |; \\n is a line feed and - means none."""
    return () if text in {"", "-"} else tuple(s.replace("\\n", "\n") for s in text.split("|") if s)


SETTINGS: dict[str, Setting] = {
    "temperature": Setting(
        _number(float, 0, 2), "a number from 0 to 2", "0 always takes the likeliest token"
    ),
    "top_p": Setting(
        _number(float, 0, 1),
        "a number from 0 to 1",
        "share of the probability that tokens are drawn from",
    ),
    "max_tokens": Setting(
        _number(int, 1, 1_000_000),
        "a whole number from 1 to 1000000",
        "most new tokens of an answer",
    ),
    "top_k": Setting(
        _number(int, 0, 1_000_000),
        "a whole number from 0 to 1000000",
        "draw from so many of the likeliest tokens; 0: off",
    ),
    "min_p": Setting(
        _number(float, 0, 1),
        "a number from 0 to 1",
        "leave out tokens less likely than this share of the likeliest; 0: off",
    ),
    "repetition_penalty": Setting(
        _number(float, 0.01, 10),
        "a number from 0.01 to 10",
        "over 1 makes tokens that occurred less likely; 1: off",
    ),
    "seed": Setting(_seed, "a whole number, or - for none", "repeats an answer"),
    "stop": Setting(
        _stop,
        "strings separated by |, or - for none",
        "strings that end the answer, separated by |",
    ),
}
assert set(SETTINGS) == {field.name for field in fields(Sampling)}


def change(sampling: Sampling, name: str, text: str) -> Sampling:
    """The sampling with one setting read from text. Raises ValueError with a sentence."""
    if name not in SETTINGS:
        raise ValueError(f"The settings are {', '.join(SETTINGS)}; not “{name}”.")
    try:
        return replace(sampling, **{name: SETTINGS[name].read(text)})
    except ValueError:
        raise ValueError(f"{name} is {SETTINGS[name].range}; not “{text}”.") from None


def show(sampling: Sampling) -> str:
    """All settings in one line; those that are off are left out."""
    off = Sampling(temperature=-1, top_p=-1, max_tokens=-1)
    shown = []
    for name in SETTINGS:
        value = getattr(sampling, name)
        if value != getattr(off, name):
            words = (
                "|".join(value).replace("\n", "\\n") if isinstance(value, tuple) else f"{value:g}"
            )
            shown.append(f"{name} {words}")
    return "  ".join(shown)
