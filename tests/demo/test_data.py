from __future__ import annotations

import json
from pathlib import Path

from demo import data


def test_rows_are_conversations_that_end_with_an_answer(tmp_path: Path) -> None:
    file = data.prepare(tmp_path)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(rows) > 2000
    for row in rows:
        turns = row["conversations"]
        assert len(turns) >= 2
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert all(isinstance(turn["value"], str) and turn["value"] for turn in turns)
    assert data.prepare(tmp_path) == file


def test_alternatives_become_rows_of_their_own_and_dialogues_stay_whole(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.prepare(tmp_path).read_text("utf-8").splitlines()]
    lengths = {source: set() for source in {row["source"] for row in rows}}
    for row in rows:
        lengths[row["source"]].add(len(row["conversations"]))
    assert lengths["computers"] == {2}
    assert max(lengths["conversations"]) > 10
