"""What the report and the card say first about a run has to be true."""

from __future__ import annotations

import math

import pytest
from run_records import run_record

from trainer import summary
from trainer.record import SourceLoss
from trainer.summary import overall_loss, verdict


def test_an_improvement_is_stated_with_its_figures() -> None:
    run = run_record(losses=(SourceLoss("all", 2.4711, 0.6902, 100, 9_876),))

    found = verdict(run)

    assert found.outcome == "better"
    assert found.sentence.replace("\u202f", " ").replace("\xa0", " ") == (
        "Better than the base model: held-out loss 2.47 → 0.69 over 9 876 tokens, −72 %."
    )


@pytest.mark.parametrize(
    ("base", "tuned", "outcome", "word"),
    [
        (1.0, 1.4, "worse", "Worse than the base model"),
        (1.0, 1.004, "level", "No clear change"),
        (1.0, 0.996, "level", "No clear change"),
        (1.0, math.nan, "diverged", "diverged"),
        (1.0, math.inf, "diverged", "diverged"),
    ],
)
def test_a_run_that_did_not_help_is_not_praised(
    base: float, tuned: float, outcome: str, word: str
) -> None:
    found = verdict(run_record(losses=(SourceLoss("all", base, tuned, 10, 1000),)))

    assert found.outcome == outcome
    assert word in found.sentence


def test_no_measurement_is_said_to_be_none() -> None:
    assert verdict(run_record(losses=())).outcome == "unmeasured"


def test_without_a_row_for_all_sources_they_are_weighted_by_tokens() -> None:
    run = run_record(losses=(SourceLoss("a", 1.0, 0.5, 10, 300), SourceLoss("b", 2.0, 1.5, 1, 100)))

    assert overall_loss(run) == SourceLoss("all", 1.25, 0.75, 11, 400)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (187, "3 min 07 s"),
        (7500, "2 h 05 min"),
        (math.nan, "–"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert summary.duration(seconds) == text


@pytest.mark.parametrize(
    ("nats", "text"), [(0.0, "1.00"), (2.0, "7.39"), (math.nan, "–"), (math.inf, "–")]
)
def test_perplexity_is_e_to_the_loss(nats: float, text: str) -> None:
    assert summary.perplexity(nats) == text


def test_times_are_shown_in_utc() -> None:
    assert summary.moment("2026-11-23T10:16:42+02:00") == "2026-11-23 08:16 UTC"
    assert summary.moment("yesterday") == "yesterday"
