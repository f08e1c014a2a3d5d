"""Runs to a JSON file and back. Runs of another day are left in the file and not given out: the machine has changed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.figures import Level, Turns
from benchmarks.machine import Machine
from benchmarks.measure import Run

FORMAT = "lorachat-benchmark/1"


def append(path: Path, machine: Machine, runs: list[Run]) -> None:
    """Adds runs to the file, whole or not at all. Raises ValueError if the file is of another machine or format."""
    entries = _entries(path, machine)
    entries += [asdict(run) for run in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    content = {"format": FORMAT, "machine": asdict(machine), "runs": entries}
    partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    partial.replace(path)


def read(path: Path, machine: Machine, day: str) -> list[Run]:
    """The runs of a day (YYYY-MM-DD, UTC) in the order they were made; none if there is no file."""
    return [_run(entry) for entry in _entries(path, machine) if entry["at"].startswith(day)]


def _entries(path: Path, machine: Machine) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = json.loads(path.read_text("utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file of this benchmark. Name another with --json.")
    if (content["machine"]["cpu"], content["machine"]["cores"]) != (machine.cpu, machine.cores):
        raise ValueError(f"{path} was measured on another machine. Name another with --json.")
    entries: list[dict[str, Any]] = content["runs"]
    return entries


def _run(entry: dict[str, Any]) -> Run:
    levels = tuple(Level(**level) for level in entry["levels"])
    turns = Turns(**entry["turns"]) if entry["turns"] else None
    return Run(**{**entry, "levels": levels, "turns": turns, "answers": tuple(entry["answers"])})
