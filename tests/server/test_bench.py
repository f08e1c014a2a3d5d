"""The numbers of `python -m server bench` are of real answers by the real engine, and add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.api.scrape import SIZES
from server.operate import bench_table
from server.operate.bench import Numbers, Stream, rate
from tests.conftest import ROOT


def numbers(**fields: float) -> Numbers:
    made = Numbers("m", "avx2", "float32", 2, 1.0, bandwidth=20e9, step_bytes=int(5e8))
    made.tokens_per_second = {1: fields.get("speed", 30.0), 4: 80.0}
    return made


def test_the_rate_is_that_of_the_time_in_which_all_run() -> None:
    early = Stream(0.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    late = Stream(0.0, [2.5, 3.5, 4.5, 5.5])
    assert rate([early]) == pytest.approx(1.0)
    # From 2.5 to 5.0 both run: 3, 4, 5 and 3.5, 4.5.
    assert rate([early, late]) == pytest.approx(5 / 2.5)
    assert early.first == 1.0


def test_streams_too_short_to_overlap_are_taken_whole() -> None:
    assert rate([Stream(0.0, [0.5]), Stream(0.0, [2.0])]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("speed", "words"),
    [(30.0, "75%"), (10.0, "The cores limit it"), (60.0, "processor's cache")],
)
def test_it_says_how_the_speed_relates_to_the_memory(speed: float, words: str) -> None:
    made = numbers(speed=speed)
    assert made.ceiling == pytest.approx(40.0)
    shown = bench_table.table(made)
    assert words in shown
    assert "40.0 tokens/s" in shown
    assert "80.0 tokens/s, 20.0 each" in shown
    assert json.loads(bench_table.as_json(made))["share_of_ceiling"] == pytest.approx(speed / 40)


def test_the_command_measures_the_model_it_is_given(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "bench", "--model", str(tiny_model), "--json",
         "--adapters", str(tmp_path / "none"), "--max-running", "8", "--threads", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown["tokens_per_second"]) == {"1", "4", "8"}
    assert all(speed > 0 for speed in shown["tokens_per_second"].values())
    assert shown["prompt_tokens_per_second"] > 0
    assert 0 < shown["first_token_seconds"] < 60
    assert shown["peak_memory_bytes"] > 2**20
    assert shown["step_bytes"] > 0
    assert shown["threads"] == 1


def test_a_model_that_is_not_there_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "bench", "--model", "/no/such/model"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("server: There is no folder at /no/such")


def test_what_a_start_measures_is_what_the_metrics_know(tiny_model: Path) -> None:
    from server.loading import load_here
    from server.settings import Settings

    loaded, _ = load_here(Settings(model=str(tiny_model), adapters=None, threads=1))
    assert loaded.sizes is not None
    assert loaded.sizes.keys() == SIZES.keys()
    assert all(size > 0 for size in loaded.sizes.values())
    assert {"kernel", "weights", "threads", "block_size", "max_running"} == (
        loaded.info or {}
    ).keys()
