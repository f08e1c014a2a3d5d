"""The sampler once more, slowly: plain loops over plain floats, written from the definitions in SamplingParams and
server/model/sampler.py, sharing no code with it."""

from __future__ import annotations

import array
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.step import Row


class Allow:
    """A grammar that allows the same tokens always."""

    def __init__(self, token_ids: Iterable[int], vocab: int) -> None:
        self._words = array.array("I", [0] * -(-vocab // 32))
        for token in token_ids:
            self._words[token // 32] |= 1 << token % 32
        self.ids = set(token_ids)

    def allowed(self) -> memoryview:
        return memoryview(self._words)

    def advance(self, token_id: int) -> None:
        assert token_id in self.ids


def random_settings(chance: random.Random, vocab: int) -> dict[str, Any]:
    """Sampling parameters in any mix, at and around their edges."""
    biased = [chance.randrange(vocab) for _ in range(chance.choice([0, 0, 1, 5]))]
    return {
        "temperature": chance.choice([0, 1e-3, 0.3, 1.0, 2.0]),
        "top_k": chance.choice([0, 0, 1, 2, 5, 40, vocab + 9]),
        "top_p": chance.choice([1.0, 1.0, 1e-9, 0.3, 0.95, 0.999999]),
        "min_p": chance.choice([0.0, 0.0, 0.02, 0.5, 1.0]),
        "presence_penalty": chance.choice([0, 0, -1.5, 0.7]),
        "frequency_penalty": chance.choice([0, 0, -0.4, 1.1]),
        "repetition_penalty": chance.choice([1, 1, 0.8, 1.4]),
        "logit_bias": tuple((token, chance.uniform(-9, 9)) for token in biased),
    }


def splitmix64(seed: int) -> Iterable[float]:
    """The sequence as published: a state that grows by the golden gamma, mixed."""
    state = seed % 2**64
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ z // 2**30) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ z // 2**27) * 0x94D049BB133111EB) % 2**64
        z = z ^ z // 2**31
        yield (z // 2**11) / 2**53


def processed_slowly(
    logits: Sequence[float], row: Row, output: Sequence[int], k: int
) -> list[float]:
    p = row.params
    out = [float(x) for x in logits]
    for token, bias in p.logit_bias:
        out[token] += bias
    for token in set(row.prompt_ids) | set(output):
        out[token] = (
            out[token] / p.repetition_penalty
            if out[token] > 0
            else out[token] * p.repetition_penalty
        )
    for token in set(output):
        out[token] -= p.frequency_penalty * list(output).count(token) + p.presence_penalty
    if row.constraint is not None:
        data = row.constraint.allowed().tobytes()
        out = [x if data[t // 8] >> t % 8 & 1 else -math.inf for t, x in enumerate(out)]
    if k < row.num_banned_draws:
        left = [-math.inf if t in row.banned_ids else x for t, x in enumerate(out)]
        if max(left) > -math.inf:
            out = left
    return out


def weights_slowly(logits: Sequence[float], row: Row) -> dict[int, float]:
    """The kept tokens' weights, not normalised, by ascending id."""
    p = row.params
    peak = max(logits)
    ids = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    if p.top_k:
        ids = ids[: p.top_k]
    weights = {t: math.exp(max((logits[t] - peak) / p.temperature, -1e300)) for t in ids}
    ids.sort(key=lambda t: (-weights[t], t))
    if p.top_p < 1:
        total, mass, nucleus = math.fsum(weights.values()), 0.0, []
        for token in ids:
            nucleus.append(token)
            mass += weights[token]
            if mass >= p.top_p * total:
                break
        ids = nucleus
    ids = [t for t in ids if weights[t] >= p.min_p * weights[ids[0]]]
    return {t: weights[t] for t in sorted(ids)}


def draw_slowly(logits: NDArray[np.float32], row: Row) -> list[int]:
    """The tokens of draw_row."""
    drafts = (
        list(row.token_ids[len(row.token_ids) - (len(logits) - 1) :]) if len(logits) > 1 else []
    )
    drawn: list[int] = []
    for k in range(len(logits)):
        values = processed_slowly(logits[k].tolist(), row, [*row.output_ids, *drawn], k)
        if row.params.temperature == 0:
            drawn.append(values.index(max(values)))
        else:
            numbers = iter(splitmix64(row.seed))
            for _ in range(row.draw + k):
                next(numbers)
            u = next(numbers)
            weights = weights_slowly(values, row)
            total = sum(weights.values())
            sums = zip(weights, itertools.accumulate(weights.values()), strict=True)
            drawn.append(next((t for t, mass in sums if mass > u * total), max(weights)))
        if k < len(drafts) and drawn[-1] != drafts[k]:
            break
    return drawn
