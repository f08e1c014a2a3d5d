"""Converts the embedded conversations (the English part of chatterbot-corpus, BSD) to ShareGPT rows.

Some of its lists are dialogues; in others the first line is a question and each further line another answer to it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo.errors import DemoError

WHEEL = "chatterbot_corpus"
# Facts that a model of this size cannot know: trained on them, it would learn to guess.
LEFT_OUT = frozenset({"trivia"})
HELP_DESK = frozenset({"tech_support"})
# Where a list is one question with several answers. Elsewhere a list is a dialogue.
ALTERNATIVES = frozenset({"computers", "emotion"})


@dataclass(frozen=True, slots=True)
class Files:
    """JSON Lines files of ShareGPT rows."""

    help_desk: Path
    small_talk: Path


def prepare(cache: Path) -> Files:
    """The two files, written on the first call. Raises DemoError if the package is not installed."""
    folder = cache / "data" / "chatterbot-english"
    files = Files(folder / "help-desk.jsonl", folder / "small-talk.jsonl")
    if files.help_desk.exists() and files.small_talk.exists():
        return files
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise DemoError(
            "The embedded data's package chatterbot-corpus is not installed. Run: make env"
        )
    source = Path(spec.submodule_search_locations[0]) / "data" / "english"
    rows = [row for file in sorted(source.glob("*.yml")) for row in _rows(file)]
    if not rows:
        raise DemoError("chatterbot-corpus holds no conversations. Remove .venv and run: make env")
    folder.mkdir(parents=True, exist_ok=True)
    _write(files.help_desk, [row for row in rows if row["source"] in HELP_DESK])
    _write(files.small_talk, [row for row in rows if row["source"] not in HELP_DESK | LEFT_OUT])
    return files


def _write(target: Path, rows: list[dict[str, Any]]) -> None:
    partial = target.with_suffix(f".{os.getpid()}")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    partial.replace(target)


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for lines in yaml.safe_load(file.read_text("utf-8"))["conversations"]:
        if not isinstance(lines, list):  # one entry of trivia.yml is a bare string
            continue
        turns = [str(line).strip() for line in lines]
        if file.stem in ALTERNATIVES:
            rows += [_row(file, [turns[0], answer]) for answer in turns[1:]]
        else:
            rows.append(_row(file, turns[: len(turns) // 2 * 2]))  # must end with an answer
    return rows


def _row(file: Path, turns: list[str]) -> dict[str, Any]:
    roles = ("human", "gpt")
    return {
        "conversations": [{"from": roles[i % 2], "value": turn} for i, turn in enumerate(turns)],
        "source": file.stem,
    }
