"""The last thing a run writes: that it is complete, and what came of it. What is complete is not done again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.durable import write_text
from trainer.errors import ConfigError
from trainer.identity import differing, read_identity, recipe_facts
from trainer.request import RunRequest

FILE = "complete.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a complete run left. Paths as they were given."""

    name: str
    summary: str
    adapter: str
    report: str
    published: str | None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Mark the run in `folder` as complete. Raises OSError."""
    write_text(folder / FILE, json.dumps(asdict(outcome), indent=1) + "\n")


def earlier_outcome(request: RunRequest) -> Outcome | None:
    """The outcome of a complete run in the request's folder; None if there is none.

    Raises ConfigError if it was another run, or if it was not published and now is to be.
    """
    path = request.output / FILE
    try:
        outcome = Outcome(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    differences = differing(read_identity(request.output) or {}, recipe_facts(request.recipe))
    if outcome.name != request.name:
        differences.append(f"--name: {outcome.name} -> {request.name}")
    if differences:
        raise ConfigError(
            f"{request.output} holds a complete run that differs: {'; '.join(differences)}. Choose another --output."
        )
    if outcome.published is None and request.adapters is not None:
        raise ConfigError(
            f"{request.output} holds a complete run that was not published (--no-publish). Remove {path} and start "
            "again to publish it; nothing is trained twice."
        )
    return outcome
