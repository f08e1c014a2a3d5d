"""Percentiles, rates and ratios are what their names say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.client import Sample
from benchmarks.figures import Level, percentile, summarise, summarise_turns
from benchmarks.measure import Run
from benchmarks.ratios import Ratio, hardest, kinds_compared, ratios
from benchmarks.stream import Recording

FLOATS = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(FLOATS, min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    expected = float(np.percentile(values, percent))
    assert percentile(values, percent) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def sample(begun: float, times: list[float], *, turn: int = 0, error: str | None = None) -> Sample:
    recording = Recording("x", times, 10, len(times), 0, "length", error)
    return Sample(begun, times[-1] if times else begun, turn, recording)


def test_rates_are_over_the_time_from_the_first_request_to_the_last_answer() -> None:
    level = summarise(
        [
            sample(10.0, [10.5, 10.6, 10.7]),
            sample(10.2, [11.2, 11.4, 11.6, 12.0], turn=1),
            sample(10.0, [10.1], error="status 500"),
        ],
        concurrency=2,
    )
    assert level.seconds == pytest.approx(2.0)
    assert (level.requests, level.errors, level.first_error) == (3, 1, "status 500")
    assert (level.prompt_tokens, level.output_tokens) == (20, 7)
    assert level.tokens_per_second == pytest.approx(3.5)
    assert level.first_token_ms_p50 == pytest.approx(750)
    assert level.opening_ms_p50 == pytest.approx(500)
    assert level.token_ms_p50 == pytest.approx((100 + 800 / 3) / 2)


def test_a_load_in_which_all_fails_has_no_times() -> None:
    level = summarise([sample(0.0, [], error="refused"), sample(0.0, [1.0], error="refused")], 1)
    assert level.errors == 2
    assert level.tokens_per_second == 0
    assert level.first_token_ms_p50 is None


def test_reuse_is_the_median_over_pairs_of_the_same_prompt() -> None:
    pairs = [(sample(0.0, [t]), sample(0.0, [c])) for t, c in ((1.0, 4.0), (1.0, 2.0), (3.0, 4.0))]
    turns = summarise_turns(1, [sample(0.0, [5.0])], pairs)
    assert (turns.first, turns.later, turns.again) == (5000, 1000, 4000)
    assert turns.reuse == pytest.approx(0.5)


def run(
    server: str,
    minute: int,
    tokens_per_second: float,
    token_ms: float,
    gigabytes: float,
    *,
    version: str = "1",
    kind: str = "base",
) -> Run:
    level = Level(4, 8, 0, None, 1.0, 1, 1, tokens_per_second, 1, 1, None, token_ms, 1, 1)
    at = f"2026-01-01T00:{minute:02d}:00+00:00"
    return Run(server, version, "m", kind, at, 2, gigabytes, gigabytes, 1.0, 100, (level,), None)


def by_name(found: list[Ratio]) -> dict[str, Ratio]:
    assert len({ratio.what for ratio in found}) == len(found)
    return {ratio.what: ratio for ratio in found}


def test_ratios_are_of_the_runs_closest_in_time_and_put_right_by_the_probe() -> None:
    runs = [
        run("peer", 0, 1000, 1, 20),  # long before any of ours
        run("we", 30, 100, 10, 20),
        run("peer", 31, 50, 20, 10),
        run("we", 40, 90, 12, 20),
        run("peer", 41, 30, 24, 20),
    ]
    found = by_name(ratios(runs, "we"))
    rate, time = found["tok/s, 4 users"], found["ms/token, 4 users"]
    assert rate.plain == pytest.approx([2, 3])
    # Ours had twice the bandwidth in the first pair: half of the gain was the machine's.
    assert rate.at_equal_bandwidth == pytest.approx([1, 3])
    assert time.plain == pytest.approx([0.5, 0.5])
    assert time.at_equal_bandwidth == pytest.approx([1, 0.5])
    assert found["peak memory"].at_equal_bandwidth == pytest.approx([1, 1])


def test_only_our_newest_version_counts() -> None:
    runs = [
        run("we", 1, 10, 1, 1),
        run("peer", 2, 50, 1, 1),
        run("we", 3, 100, 1, 1, version="2"),
    ]
    assert by_name(ratios(runs, "we"))["tok/s, 4 users"].plain == pytest.approx([2])


def test_the_hardest_peer_is_the_fastest_of_those_named() -> None:
    runs = [
        run("slow", 1, 20, 40, 1),
        run("fast", 2, 50, 10, 1),
        run("unfair", 3, 500, 1, 1),
        run("we", 4, 100, 5, 1),
    ]
    found = by_name(hardest(ratios(runs, "we"), ("slow", "fast")))
    assert found["tok/s, 4 users"].plain == pytest.approx([2])
    assert found["ms/token, 4 users"].plain == pytest.approx([0.5])
    assert found["tok/s, 4 users"].peer == found["ms/token, 4 users"].peer == "fast"


def test_our_kinds_are_compared_with_each_other() -> None:
    runs = [
        run("we", 1, 100, 10, 1),
        run("we", 2, 95, 11, 1, kind="one"),
        run("we", 3, 76, 12, 1, kind="eight"),
    ]
    found = {(r.kind, r.what): r.plain for r in kinds_compared(runs, "we")}
    assert found["one / base", "tok/s, 4 users"] == pytest.approx([0.95])
    assert found["eight / one", "tok/s, 4 users"] == pytest.approx([0.8])
