"""Every server is asked the same, and never what it was asked before."""

from __future__ import annotations

import json
from itertools import combinations, takewhile
from pathlib import Path

import pytest

from benchmarks.workload import (
    BLOCK_REQUESTS,
    CHARACTERS_PER_TOKEN,
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    Workload,
)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder of both kinds of rows, two of them outside the range of lengths."""
    chats = [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "w" * n},
            ]
        }
        for n in (10, 200, 300, 10_000)
    ]
    instructions = [{"instruction": f"{n} " * 80, "output": "-"} for n in range(100, 140)]
    for name, rows in (("chats", chats), ("instructions", instructions)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_same_seed_gives_the_same_chats_and_another_seed_others(recorded: Path) -> None:
    for folder in (None, recorded):
        first, again, other = (Workload(seed, folder).take(40) for seed in (5, 5, 6))
        assert first == again
        assert first != other


def test_taking_in_pieces_gives_whole_blocks_with_the_requests_asked_for() -> None:
    for requests in (1, BLOCK_REQUESTS, BLOCK_REQUESTS + 1, 100):
        chats = Workload(0).take(requests)
        total = sum(len(chat.turns) for chat in chats)
        assert requests <= total < requests + BLOCK_REQUESTS


def test_no_prompt_begins_like_another_beyond_the_shared_system_prompt(recorded: Path) -> None:
    for folder in (None, recorded):
        workload = Workload(1, folder)
        openings = [chat.turns[0] for _ in range(3) for chat in workload.take(16)]
        longest = max(
            len(list(takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False))))
            for pair in combinations(openings, 2)
        )
        assert longest < len("Request 000000-"), "a prefix cache would answer for the model"
        systems = {chat.system for chat in workload.take(16)}
        assert systems == {None, workload.system}


def test_prompts_have_realistic_lengths() -> None:
    chats = Workload(0).take(400)
    tokens = [
        sum(map(len, (chat.system or "", chat.turns[0]))) / CHARACTERS_PER_TOKEN for chat in chats
    ]
    assert min(tokens) < 50
    assert max(tokens) > 400
    assert max(tokens) < 650


def test_recorded_questions_out_of_range_are_left_out_and_none_repeats_early(
    recorded: Path,
) -> None:
    workload = Workload(0, recorded)
    asked = [chat.turns[0].split(". ", 1)[1] for chat in workload.take(20)]
    assert all(MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS for text in asked)
    assert len(set(asked)) == len(asked)


def test_a_folder_without_questions_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        Workload(0, tmp_path)
