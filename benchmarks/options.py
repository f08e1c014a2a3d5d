"""The options that serve.py and compare.py share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Plan
from benchmarks.models import DEFAULT_OUTPUT, LARGE, SMALL, embedded_model, prepare

EMBEDDED = "embedded"
KINDS = ("base", "one", "eight")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        choices=[SMALL, LARGE, EMBEDDED],
        default=SMALL,
        help=f"made on first use; {EMBEDDED}: the embedded model itself, whose weights are not"
        " bfloat16-representable, without adapters (default: %(default)s)",
    )
    parser.add_argument(
        "--source", type=Path, default=embedded_model(), help="folder that `make model` printed"
    )
    parser.add_argument(
        "--kinds",
        type=_words(KINDS),
        default=KINDS,
        help="of base,one,eight: which models are asked",
    )
    parser.add_argument(
        "--users", type=_numbers, default=(1, 4, 8, 16), help="concurrency of each load (1,4,8,16)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer (64)")
    parser.add_argument(
        "--limit", type=float, default=40, help="seconds after which a load begins no request (40)"
    )
    parser.add_argument(
        "--conversations", type=int, default=2, help="of four turns; 0: leave them out (2)"
    )
    parser.add_argument("--data", type=Path, help="folder with recorded chats (*.jsonl)")
    parser.add_argument("--seed", type=int, default=0, help="decides the prompts (0)")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="of each server (all cores)",
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="for all that is made")
    parser.add_argument("--json", type=Path, help="results file (OUTPUT/results/MODEL.json)")


def plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        concurrencies=arguments.users,
        max_tokens=arguments.tokens,
        limit_seconds=arguments.limit,
        conversations=arguments.conversations,
        seed=arguments.seed,
        data=arguments.data,
    )


def model(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """(model folder, adapter volume); an empty volume for the embedded model. Raises FileNotFoundError."""
    if arguments.model != EMBEDDED:
        return prepare(arguments.model, arguments.source, arguments.output)
    if not (arguments.source / "config.json").is_file():
        raise FileNotFoundError(f"{arguments.source} holds no model. `make model` prepares one.")
    volume = arguments.output / "adapters" / EMBEDDED
    volume.mkdir(parents=True, exist_ok=True)
    return arguments.source, volume


def kinds(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The embedded model has no adapters here."""
    return ("base",) if arguments.model == EMBEDDED else tuple(arguments.kinds)


def results(arguments: argparse.Namespace) -> Path:
    return arguments.json or Path(arguments.output / "results" / f"{arguments.model}.json")


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("each must be at least 1")
    return numbers


def _words(allowed: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        unknown = [word for word in words if word not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return words

    return read
