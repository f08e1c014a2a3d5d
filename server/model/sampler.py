"""From logits to a token: one row, its own parameters, its own random numbers.

A row's draw depends on its logits, parameters, seed and draw number, and on nothing else; so neither its neighbours
in the batch nor the time it joined can change it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.types import SamplingParams


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """logits: (vocab,) float32. Takes exactly one number from generator, unless greedy.

    Greedy at temperature 0. Else softmax(logits / temperature), cut to the smallest set of
    most likely tokens whose mass reaches top_p (nucleus sampling, arXiv:1904.09751), drawn by inverting the
    cumulative distribution.
    """
    if params.temperature == 0:
        return int(logits.argmax())
    # float64: a cumulated float32 sum over a vocabulary of 128k entries is only good to about 1e-3 in the tail.
    # The maximum goes first: divided by a temperature near zero it would be infinite, and all the rest NaN.
    exact = logits.double()
    probabilities = torch.softmax((exact - exact.max()) / params.temperature, dim=-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    cumulative = ordered.cumsum(dim=-1)
    if params.top_p < 1:
        kept = int(torch.searchsorted(cumulative, params.top_p)) + 1
        cumulative = cumulative[:kept]
    draw = torch.rand((), dtype=torch.float64, generator=generator) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, draw, right=True))
    return int(ids[min(index, len(cumulative) - 1)])
