from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.model.sampler import sample
from server.types import SamplingParams


def draws(logits: torch.Tensor, count: int, **params: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    settings = SamplingParams(**params)  # type: ignore[arg-type]
    return torch.tensor([sample(logits, settings, generator) for _ in range(count)])


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """The published definition, independent of our code: float64, plain loops."""
    p = np.exp(logits.double().numpy() / temperature)
    p /= p.sum()
    kept, mass = np.zeros_like(p), 0.0
    for token in np.argsort(-p, kind="stable"):
        kept[token] = p[token]
        mass += p[token]
        if mass >= top_p:
            break
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.2, 0.8, 1.0])
def test_frequencies_follow_the_published_definition(temperature: float, top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 2.0])
    expected = nucleus(logits, temperature, top_p)
    n = 4000
    seen = torch.bincount(draws(logits, n, temperature=temperature, top_p=top_p), minlength=6) / n
    assert not seen[expected == 0].any(), "a token outside the nucleus"
    # Four standard deviations of a binomial share.
    bound = 4 * np.sqrt(expected * (1 - expected) / n) + 1e-12
    assert (np.abs(seen.numpy() - expected) <= bound).all()


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(1e-6, 2), st.floats(1e-9, 1)
)
def test_a_draw_is_always_a_token_of_the_nucleus(
    values: list[float], temperature: float, top_p: float
) -> None:
    logits = torch.tensor(values)
    token = int(draws(logits, 1, temperature=temperature, top_p=top_p)[0])
    p = torch.softmax(logits.double() / temperature, -1)
    more_likely = p[p > p[token]].sum()
    assert more_likely < top_p + 1e-9


def test_temperature_zero_is_the_most_likely_token_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sample(torch.tensor([0.0, 3.0, 1.0]), SamplingParams(temperature=0), generator) == 1
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("temperature", [1e-6, 1e-300, 1e-308, 5e-324])
def test_a_temperature_near_zero_comes_near_greedy(temperature: float) -> None:
    logits = torch.tensor([1.0, 5.0, -40.0, 4.9])
    assert set(draws(logits, 5, temperature=temperature).tolist()) == {1}
