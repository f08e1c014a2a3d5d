from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo import data


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_rows_are_conversations_that_end_with_an_answer(tmp_path: Path) -> None:
    files = data.prepare(tmp_path)
    assert len(read(files.help_desk)) == 1050
    assert len(read(files.small_talk)) > 850
    rows = read(files.help_desk) + read(files.small_talk)
    for row in rows:
        turns = row["conversations"]
        assert len(turns) >= 2
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert all(isinstance(turn["value"], str) and turn["value"] for turn in turns)
    assert data.prepare(tmp_path) == files


def test_alternatives_become_rows_of_their_own_and_dialogues_stay_whole(tmp_path: Path) -> None:
    rows = read(data.prepare(tmp_path).small_talk)
    lengths: dict[str, set[int]] = {source: set() for source in {row["source"] for row in rows}}
    for row in rows:
        lengths[row["source"]].add(len(row["conversations"]))
    assert lengths["computers"] == {2}
    assert max(lengths["conversations"]) > 10
