"""The sampler against a slow copy of its definitions, against transformers where it defines the same, and by its
frequencies. SAMPLERS: every implementation of draw_row there is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.model.sampler import draw_row, score, uniform
from server.step import Row, Sampled
from server.types import SamplingParams
from tests.server.sampler_reference import (
    Allow,
    draw_slowly,
    processed_slowly,
    random_settings,
    splitmix64,
    weights_slowly,
)

DrawRow = Callable[[NDArray[np.float32], Row], tuple[Sampled, ...]]
SAMPLERS: dict[str, DrawRow] = {"numpy": draw_row}


@pytest.fixture(params=SAMPLERS)
def draw(request: pytest.FixtureRequest) -> DrawRow:
    return SAMPLERS[request.param]


def row(num_draws: int = 1, drafts: tuple[int, ...] = (), **settings: Any) -> Row:
    """Settings of Row where it has them, of SamplingParams otherwise."""
    own = {name: settings.pop(name) for name in list(settings) if name in Row.__slots__}
    defaults: dict[str, Any] = {"seed": 0, "draw": 0}
    return Row(
        token_ids=(1, *drafts),
        start=0,
        block_ids=(0,),
        num_draws=max(num_draws, 1 + len(drafts)),
        params=SamplingParams(**settings),
        adapter=None,
        **defaults | own,
    )


def drawn(draw: DrawRow, logits: NDArray[np.float32], given: Row) -> list[int]:
    return [s.token_id for s in draw(logits, given)]


def random_logits(chance: random.Random, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Peaked, flat, and with many equal values."""
    generator = np.random.default_rng(chance.getrandbits(64))
    values = generator.normal(scale=chance.choice([0.1, 2, 8]), size=shape)
    return np.round(values, chance.choice([0, 1, 6])).astype(np.float32)


def random_row(chance: random.Random, vocab: int) -> Row:
    def some(count: int) -> tuple[int, ...]:
        return tuple(chance.randrange(vocab) for _ in range(chance.randint(0, count)))

    constraint = Allow({chance.randrange(vocab) for _ in range(20)}, vocab)
    drafts = () if (constrained := chance.random() < 0.2) else some(3)
    return row(
        drafts=drafts,
        seed=chance.getrandbits(64),
        draw=chance.randint(0, 500),
        prompt_ids=some(30),
        output_ids=some(30),
        banned_ids=some(4),
        num_banned_draws=chance.randint(0, 2),
        constraint=constraint if constrained else None,
        **random_settings(chance, vocab),
    )


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**64))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_row_is_drawn_by_the_definitions(sampler: str, seed: int) -> None:
    chance = random.Random(seed)
    # From one token to more than the shortcut for top_k needs.
    vocab = chance.choice([1, 2, 31, 64, 100, 700, 3000])
    given_row = random_row(chance, vocab)
    logits = random_logits(chance, (given_row.num_draws, vocab))
    # Half of the time the drafts are right, so that what follows them is seen.
    if given_row.num_drafts and chance.random() < 0.5:
        for _ in range(given_row.num_drafts):
            right = draw_slowly(logits, given_row)
            tokens = (1, *right, *given_row.token_ids[1 + len(right) :])
            given_row = replace(given_row, token_ids=tokens[: len(given_row.token_ids)])
    assert drawn(SAMPLERS[sampler], logits, given_row) == draw_slowly(logits, given_row)


@pytest.mark.parametrize("seed", range(8))
def test_transformers_keeps_the_same_tokens_and_weights(seed: int, draw: DrawRow) -> None:
    """Repetition penalty, temperature, top-k, top-p and min-p as transformers defines and orders them."""
    import torch
    from transformers import generation as hf

    chance = random.Random(seed)
    vocab = 300
    logits = np.random.default_rng(seed).normal(scale=3, size=(1, vocab)).astype(np.float32)
    text = [chance.randrange(vocab) for _ in range(20)]
    params = {
        "repetition_penalty": chance.choice([1.2, 0.7]),
        "temperature": chance.choice([0.6, 1.7]),
        "top_k": chance.choice([5, 30]),
        "top_p": chance.choice([0.5, 0.9]),
        "min_p": chance.choice([0.01, 0.1]),
    }
    scores = torch.from_numpy(logits).double()
    for step in (
        hf.RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]),
        hf.TemperatureLogitsWarper(params["temperature"]),
        hf.TopKLogitsWarper(int(params["top_k"])),
        hf.TopPLogitsWarper(params["top_p"]),
        hf.MinPLogitsWarper(params["min_p"]),
    ):
        scores = step(torch.tensor([text]), scores)
    expected = torch.softmax(scores[0], -1).numpy()

    settled = row(prompt_ids=text[:8], output_ids=text[8:], **params)
    weights = weights_slowly(processed_slowly(logits[0].tolist(), settled, text[8:], 0), settled)
    ours = np.zeros(vocab)
    ours[list(weights)] = list(weights.values())
    np.testing.assert_allclose(ours / ours.sum(), expected, atol=1e-6)
    seen = {drawn(draw, logits, replace(settled, draw=i))[0] for i in range(200)}
    assert seen <= set(np.flatnonzero(expected))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 1.7, "top_p": 0.8},
        {"top_p": 0.2},
        {"top_k": 3},
        {"min_p": 0.2},
    ],
    ids=str,
)
def test_frequencies_follow_the_weights(params: dict[str, float], draw: DrawRow) -> None:
    """Chi-square over the draws of one seed: they are as good as independent."""
    logits = np.array([[2.0, 1.0, 0.5, 0.0, -1.0, 2.0]], dtype=np.float32)
    settled, count = row(**params), 4000
    weights = weights_slowly(logits[0].tolist(), settled)
    draws = [drawn(draw, logits, replace(settled, draw=i))[0] for i in range(count)]
    seen = np.bincount(draws, minlength=6)
    expected = np.zeros(6)
    expected[list(weights)] = np.array(list(weights.values())) / sum(weights.values()) * count
    assert not seen[expected == 0].any(), "a token that was to be left out"
    kept = expected > 0
    chi_square = ((seen[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < 20.5, "p < 0.001 at five degrees of freedom"


def test_different_seeds_are_independent(draw: DrawRow) -> None:
    logits = np.zeros((1, 16), dtype=np.float32)
    counts = np.zeros((16, 16))
    for seed in range(4096):
        first, second = (
            drawn(draw, logits, row(seed=seed + k))[0] for k in (0, 1)
        )  # neighbours, as seeds often are
        counts[first, second] += 1
    assert ((counts - 16) ** 2 / 16).sum() < 330, "p < 0.001 at 255 degrees of freedom"


@given(seed=st.integers(-(2**70), 2**70), number=st.integers(0, 200))
def test_a_number_is_that_of_the_published_generator(seed: int, number: int) -> None:
    numbers = iter(splitmix64(seed))
    for _ in range(number):
        next(numbers)
    value = uniform(seed, number)
    assert value == next(numbers)
    assert 0 <= value < 1


def test_the_published_generators_known_values() -> None:
    """The first outputs for seed 1234567, as listed with several implementations of SplitMix64."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [uniform(1234567, k) for k in range(4)] == [(x >> 11) * 2.0**-53 for x in known]


@given(
    values=st.lists(
        st.floats(-(2.0**40), 2.0**40, width=32) | st.integers(-2, 2), min_size=1, max_size=300
    ),
    top=st.integers(0, 301),
    chosen=st.integers(0, 299),
)
@example(values=[0.0] * 300, top=1, chosen=7)
@settings(deadline=None)
def test_scores_are_the_models_own(values: list[float], top: int, chosen: int) -> None:
    import torch

    logits, chosen = np.array(values, dtype=np.float32), chosen % len(values)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    said = score(logits, chosen, top)
    assert said.token_id == chosen
    assert said.logprob == pytest.approx(expected[chosen], abs=1e-9)
    assert said.rank == sum(x >= logits[chosen] for x in logits)
    best = sorted(range(len(values)), key=lambda t: (-logits[t], t))[:top]
    assert [token for token, _ in said.top] == best
    np.testing.assert_allclose([v for _, v in said.top], expected[best], atol=1e-9)


def test_logprobs_are_of_the_distribution_before_parameters(draw: DrawRow) -> None:
    logits = np.array([[3.0, 2.0, 1.0]], dtype=np.float32)
    params = {"temperature": 0.1, "logit_bias": ((2, 100.0),), "top_k": 1, "logprobs": 2}
    (sampled,) = draw(logits, row(**params))
    assert sampled.token_id == 2
    assert sampled.logprob == score(logits[0], 2, 2)
    assert draw(logits, row())[0].logprob is None


@pytest.mark.parametrize("temperature", [1e-6, 1e-300, 1e-308, 5e-324])
def test_a_temperature_near_zero_comes_near_greedy(temperature: float, draw: DrawRow) -> None:
    logits = np.array([[1.0, 5.0, -40.0, 4.9]], dtype=np.float32)
    near = row(temperature=temperature)
    assert {drawn(draw, logits, replace(near, draw=i))[0] for i in range(5)} == {1}


def test_greedy_takes_the_lowest_of_equals_and_no_random_number(draw: DrawRow) -> None:
    logits = np.array([[0.0, 3.0, 1.0, 3.0]], dtype=np.float32)
    assert {drawn(draw, logits, row(temperature=0, seed=i))[0] for i in range(9)} == {1}


@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"top_p": 0.99}, {"min_p": 1e-9}], ids=str)
def test_the_number_zero_draws_no_banned_token(params: dict[str, float], draw: DrawRow) -> None:
    seed = -0x9E3779B97F4A7C15  # its first number is zero
    assert uniform(seed, 0) == 0
    logits = np.array([[9.0, 5.0, 4.5, 4.0]], dtype=np.float32)
    settled = row(banned_ids=(0,), num_banned_draws=1, seed=seed, **params)
    assert drawn(draw, logits, settled) == [1]


def test_penalties_count_the_drafts_that_were_right(draw: DrawRow) -> None:
    logits = np.array([[0.0, 5.0, 4.5, 4.25]] * 4, dtype=np.float32)
    settled = row(drafts=(1, 2, 3), temperature=0, frequency_penalty=1.0)
    assert drawn(draw, logits, settled) == [1, 2, 3, 1]


def test_a_finished_grammar_may_end_before_min_tokens(draw: DrawRow) -> None:
    """It allows the end token only; banning that too would leave nothing to draw."""
    logits = np.array([[0.0, 5.0, 4.5, 4.0]], dtype=np.float32)
    settled = row(constraint=Allow([2], 4), banned_ids=(2,), num_banned_draws=1)
    assert drawn(draw, logits, settled) == [2]


def test_a_grammar_that_allows_nothing_is_an_error(draw: DrawRow) -> None:
    logits = np.zeros((1, 40), dtype=np.float32)
    with pytest.raises(ValueError, match="allows no token"):
        draw(logits, row(constraint=Allow([], 40)))


def test_a_row_leaves_its_logits_as_they_were(draw: DrawRow) -> None:
    """They are told as logprobs afterwards, and may be shared."""
    logits = np.array([[0.0, 5.0, 4.5, 4.0]], dtype=np.float32)
    before = logits.copy()
    draw(logits, row(logit_bias=((1, -9.0),), banned_ids=(2,), num_banned_draws=1))
    np.testing.assert_array_equal(logits, before)
