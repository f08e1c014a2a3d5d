from __future__ import annotations

import pytest

from server.engine.drain_rate import DrainRate


def observed(*steps: tuple[int, float]) -> DrainRate:
    rate = DrainRate()
    for num_ended, seconds in steps:
        rate.observe(num_ended, seconds)
    return rate


@pytest.mark.parametrize(
    ("steps", "places", "seconds"),
    [
        ([(0, 2.0), (1, 2.0)] * 10, 1, 4),  # one answer in four seconds
        ([(0, 2.0), (1, 2.0)] * 10, 3, 12),
        ([(5, 0.01)] * 10, 1, 1),  # never "at once"
        ([(1, 100.0)], 5, 60),  # nor never
        ([], 1, 5),  # nothing is known
        # What was slow long ago does not count.
        ([(1, 50.0)] * 10 + [(1, 2.0)] * 64, 1, 2),
    ],
)
def test_a_place_is_promised_at_the_recent_pace(
    steps: list[tuple[int, float]], places: int, seconds: int
) -> None:
    assert observed(*steps).seconds_until(places) == seconds


def test_an_engine_that_has_stalled_promises_nothing_soon() -> None:
    stalled = observed((1, 1.0), (0, 30.0))
    assert stalled.seconds_until(1) > 30
