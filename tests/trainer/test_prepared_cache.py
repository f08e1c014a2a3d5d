"""Prepared data is found again when nothing has changed, made anew when anything has, and never half there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.command import ROOT, Command
from tests.trainer.recipes import conversations, tiny_recipe, write_jsonl
from trainer.config import Recipe
from trainer.prepared_cache import PreparedCache, SortedRows, cache_from
from trainer.template import IGNORED, Encoded


class Told:
    """A reporter that remembers, and counts what was tokenised."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tokenised = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say

    def bar(self, label: str, total: int) -> Told:
        self.tokenised += total
        return self

    def advance(self, note: str = "", count: int = 1) -> None:
        """Nothing is shown."""

    @property
    def was_found(self) -> bool:
        return any("prepared before" in line for line in self.lines)


def prepare(recipe: Recipe) -> tuple[Any, Told]:
    from trainer.prepare import prepare_data

    told = Told()
    return prepare_data(recipe, told)[1], told


def rows(seed: int, count: int = 3) -> SortedRows:
    encoded = [
        Encoded([seed, 7, index], [IGNORED, 7, index], (3,) if index else (2, 3))
        for index in range(count)
    ]
    return SortedRows(list(range(count)), encoded, frozenset({1}), {"too_long": {"a": seed}})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "prepared"
    monkeypatch.setenv("LORACHAT_PREPARED", str(folder))
    return folder


def test_the_second_time_nothing_is_tokenised_and_all_is_the_same(
    tiny_model: Path, tmp_path: Path, cache: Path
) -> None:
    recipe = tiny_recipe(tiny_model, tmp_path)
    first, told = prepare(recipe)
    assert told.tokenised == 40
    assert not told.was_found
    second, told = prepare(recipe)
    assert told.tokenised == 0
    assert told.was_found
    assert second == first
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    ["rows", "fraction", "threshold", "length", "template", "seed", "samples", "long rows"],
)
def test_anything_that_changes_the_outcome_is_another_entry(
    change: str, tiny_model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_model, tmp_path)
    prepare(recipe)
    values = recipe.model_dump(mode="json")
    data = values["data"]
    match change:
        case "rows":
            write_jsonl(tmp_path / "rows.jsonl", conversations(41)[1:])
        case "fraction":
            data["test_fraction"] = 0.3
        case "threshold":
            data["near_duplicate_threshold"] = 0.9
        case "length":
            values["model"]["max_seq_length"] = 200
        case "template":
            monkeypatch.setattr(
                "trainer.prepare.template_text", lambda name, tok: tok.chat_template + "{# new #}"
            )
        case "seed":
            data["seed"] = 1
        case "samples":
            data["sources"][0]["samples"] = 30
        case "long rows":
            data["long_rows"] = "truncate"
    _, told = prepare(Recipe.model_validate(values))
    assert not told.was_found
    assert told.tokenised


def test_what_does_not_change_the_outcome_is_found(
    tiny_model: Path, tmp_path: Path, cache: Path
) -> None:
    prepare(tiny_recipe(tiny_model, tmp_path))
    _, told = prepare(tiny_recipe(tiny_model, tmp_path, training={"learning_rate": 1e-4}))
    assert told.was_found


def test_an_entry_that_is_not_whole_counts_as_nothing(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    assert cache.save("a", rows(1)) is None
    assert cache.load("a") == rows(1)
    content = (tmp_path / "a.npz").read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "a.npz").write_bytes(content[:size])
        assert cache.load("a") is None
    middle = content[: len(content) // 2] + b"\0\xff\0\xff" + content[len(content) // 2 + 4 :]
    (tmp_path / "a.npz").write_bytes(middle)
    assert cache.load("a") in (None, rows(1))  # by chance between two arrays; never another value
    assert cache.save("a", rows(1)) is None
    assert cache.load("a") == rows(1)


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    cache.save("a", rows(1))
    size = (tmp_path / "a.npz").stat().st_size
    small = PreparedCache(tmp_path, most_bytes=2 * size + size // 2)
    small.save("b", rows(2))
    os.utime(tmp_path / "a.npz", (1, 1))
    os.utime(tmp_path / "b.npz", (2, 2))
    assert small.load("a") == rows(1)  # used again: now b is the oldest
    small.save("c", rows(3))
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "c.npz"}
    tight = PreparedCache(tmp_path, most_bytes=1)
    tight.save("d", rows(4))
    assert tight.load("d") == rows(4)


def test_a_folder_that_cannot_be_written_costs_time_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORACHAT_PREPARED", str(tmp_path / "file" / "prepared"))
    data, told = prepare(tiny_recipe(tiny_model, tmp_path))
    assert len(data.train) == 32
    assert any("could not be kept for another run" in line for line in told.lines)


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(**environment: str) -> Path | None:
        found = cache_from(environment)
        return found and found._folder

    assert folder(LORACHAT_PREPARED="") is None
    assert folder(LORACHAT_PREPARED="/a", LORACHAT_CACHE="/b") == Path("/a")
    assert folder(LORACHAT_CACHE="/b", XDG_CACHE_HOME="/c") == Path("/b/prepared")
    assert folder(XDG_CACHE_HOME="/c") == Path("/c/lorachat/prepared")


MANY = """
import sys
from pathlib import Path
from tests.trainer.test_prepared_cache import rows
from trainer.prepared_cache import PreparedCache
cache = PreparedCache(Path(sys.argv[1]), most_bytes=20_000)
for turn in range(150):
    seed = turn % 12
    found = cache.load(str(seed))
    assert found is None or found == rows(seed, 40), seed
    assert cache.save(str(seed), rows(seed, 40)) is None
"""


def test_two_processes_at_once_see_whole_entries_only(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, str(tmp_path / "prepared")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert sum(path.stat().st_size for path in (tmp_path / "prepared").iterdir()) < 40_000


def test_a_second_run_says_that_it_used_it(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    recipe = tiny_recipe(tiny_model, tmp_path, training={"max_steps": 2})
    code, output = Command(tmp_path / "one", recipe).run()
    assert code == 0, output
    assert "prepared before" not in output
    other = Command(tmp_path / "two", recipe)
    code, output = other.run()
    assert code == 0, output
    assert "These rows were prepared before: taken from the cache" in output
    records = [
        json.loads((tmp_path / name / "out" / "report" / "run.json").read_bytes())
        for name in ("one", "two")
    ]
    assert records[0]["losses"] == records[1]["losses"]
    assert records[0]["sources"] == records[1]["sources"]
