from __future__ import annotations

import pytest

from benchmarks.gap import Pauses, pauses, quantile, row


def test_a_gap_counts_to_the_prompt_that_it_overlaps() -> None:
    times = [0.0, 1.0, 2.0, 5.0, 6.0, 9.0, 10.0]
    alone, beside = pauses(times, begun=2.5, ended=8.0)
    assert alone == [1.0, 1.0]
    assert beside == [3.0, 1.0, 3.0], "the one it came into, and the one it ended in"


@pytest.mark.parametrize(("part", "value"), [(0.5, 5), (0.99, 10), (0.1, 1), (1, 10)])
def test_a_quantile_is_one_of_the_values(part: float, value: int) -> None:
    assert quantile(range(1, 11), part) == value


def test_a_row_is_in_milliseconds_and_seconds() -> None:
    found = Pauses((0.01, 0.02, 0.03), (0.04, 0.05, 0.5), (12.34,))
    assert row(64, found) == "| 64 | 20 | 30 | 30 | 50 | 500 | 500 | 12.3 |"
