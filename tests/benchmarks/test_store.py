"""Runs outlive the process that made them; those of another machine or day are not mixed in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import store
from benchmarks.figures import Level, Turns
from benchmarks.machine import Machine
from benchmarks.measure import Run

MACHINE = Machine("A processor", 2, 24.0, ("avx2",), "Linux 6", "3.11")
LEVEL = Level(1, 8, 0, None, 1.5, 10, 20, 13.3, 1.0, 2.0, None, 3.0, 4.0, 5.0)
RUN = Run(
    "peer", "1.0", "m", "base", "2026-01-02T03:04:05+00:00", 2, 20.0, 21.0, 2.5, None, (LEVEL,),
    Turns(2, 0, 1.0, 2.0, None, 0.5), ("One.", "Two."),
)  # fmt: skip


def test_runs_are_added_and_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results" / "m.json"
    assert store.read(path, MACHINE, "2026-01-02") == []
    other_day = replace(RUN, at="2026-01-03T00:00:00+00:00", turns=None)
    store.append(path, MACHINE, [RUN])
    store.append(path, MACHINE, [other_day])
    assert store.read(path, MACHINE, "2026-01-02") == [RUN]
    assert store.read(path, MACHINE, "2026-01-03") == [other_day]


def test_results_of_another_machine_are_neither_read_nor_mixed(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    store.append(path, MACHINE, [RUN])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another machine"):
        store.append(path, replace(MACHINE, cores=8), [RUN])
    assert path.read_bytes() == before
