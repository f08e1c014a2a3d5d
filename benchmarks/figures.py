"""Samples -> figures. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.client import Sample


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks, as numpy's default. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True, slots=True)
class Level:
    """A load at one concurrency. Times in milliseconds, None where nothing was measured.

    tokens_per_second: output tokens of all finished answers over the time from the first request to the last answer.
    opening_ms_p50: time to first token over first turns only, whose prompts no cache has seen.
    token_ms: medians and 95th percentiles over answers of the mean time between tokens; gap_ms_p99 is over all gaps
    between pieces of text, the pauses a reader sees.
    """

    concurrency: int
    requests: int
    errors: int
    first_error: str | None
    seconds: float
    prompt_tokens: int
    output_tokens: int
    tokens_per_second: float
    first_token_ms_p50: float | None
    first_token_ms_p95: float | None
    opening_ms_p50: float | None
    token_ms_p50: float | None
    token_ms_p95: float | None
    gap_ms_p99: float | None


def summarise(samples: Sequence[Sample], concurrency: int) -> Level:
    """samples: all answers of one load, at least one."""
    good = [sample for sample in samples if sample.error is None]
    errors = [sample.error for sample in samples if sample.error is not None]
    seconds = max(s.ended for s in samples) - min(s.begun for s in samples)
    output_tokens = sum(sample.tokens for sample in good)
    first = [1e3 * sample.first_token_seconds for sample in good]
    cold = [1e3 * sample.first_token_seconds for sample in good if sample.turn == 0]
    between = [1e3 * s.token_seconds for s in good if s.token_seconds is not None]
    gaps = [
        1e3 * (b - a)
        for sample in good
        for a, b in zip(sample.recording.text_times, sample.recording.text_times[1:], strict=False)
    ]
    return Level(
        concurrency=concurrency,
        requests=len(samples),
        errors=len(errors),
        first_error=errors[0] if errors else None,
        seconds=seconds,
        prompt_tokens=sum(sample.recording.prompt_tokens or 0 for sample in good),
        output_tokens=output_tokens,
        tokens_per_second=output_tokens / seconds,
        first_token_ms_p50=_at(first, 50),
        first_token_ms_p95=_at(first, 95),
        opening_ms_p50=_at(cold, 50),
        token_ms_p50=_at(between, 50),
        token_ms_p95=_at(between, 95),
        gap_ms_p99=_at(gaps, 99),
    )


def _at(values: Sequence[float], percent: float) -> float | None:
    return percentile(values, percent) if values else None


@dataclass(frozen=True, slots=True)
class Turns:
    """Conversations, one at a time. Milliseconds to the first token, medians.

    first: the opening turn. later: the turns after it. again: the same prompts as `later`, made new to the server by
    another opening, so that nothing of them is cached. reuse: median over the pairs of later / again.
    """

    conversations: int
    errors: int
    first: float | None
    later: float | None
    again: float | None
    reuse: float | None


def summarise_turns(
    conversations: int, firsts: Sequence[Sample], pairs: Sequence[tuple[Sample, Sample]]
) -> Turns:
    """pairs: each later turn, and the same prompt asked cold."""
    every = [*firsts, *(sample for pair in pairs for sample in pair)]
    opening = [1e3 * s.first_token_seconds for s in firsts if s.error is None]
    times = [
        (1e3 * later.first_token_seconds, 1e3 * cold.first_token_seconds)
        for later, cold in pairs
        if later.error is None and cold.error is None
    ]
    return Turns(
        conversations=conversations,
        errors=sum(sample.error is not None for sample in every),
        first=median(opening) if opening else None,
        later=median(later for later, _ in times) if times else None,
        again=median(cold for _, cold in times) if times else None,
        reuse=median(later / cold for later, cold in times) if times else None,
    )
