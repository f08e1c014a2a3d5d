"""From a row's logits to its tokens and their log-probabilities. Numpy only; knows no model and no batch.

A row's draws depend on its logits, parameters, seed and draw numbers, and on nothing else; so neither its neighbours
nor the step it is computed in can change them. All arithmetic is float64: a cumulated float32 sum over a vocabulary
of 128k entries is only good to about 1e-3 in its tail.

The numbers, exactly, for whoever computes them elsewhere. With processed logits l (SamplingParams' docstring has the
steps up to here) and temperature T: w = exp((l - max l) / T). top_k keeps the k largest l; top_p, of these in
descending w, the smallest prefix whose sum is at least top_p times the sum of all; min_p those with w >= min_p * max w.
Among equals the lower id comes first. The draw is the first kept token, in ascending id, at which the running sum
exceeds u times its end value, u being `uniform` of the row's seed and the draw's number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.step import Row, Sampled
from server.types import SamplingParams, TokenLogprob

# Processed logits: float32 as they came, or float64 once anything was added to them.
Logits = NDArray[np.float32] | NDArray[np.float64]
Ids = NDArray[np.intp]

_MASK = (1 << 64) - 1
# More weights than these are not sorted for top_p before most of them are told apart more cheaply.
SORTED_AT_MOST = 1024


def draw_row(logits: NDArray[np.float32], row: Row) -> tuple[Sampled, ...]:
    """Draw after the last row.num_draws positions, ending at the first draw that differs from its draft.

    logits: (num_draws, vocab) float32. Raises ValueError if row's constraint allows no token.
    """
    drafts = row.token_ids[len(row.token_ids) - row.num_drafts :]
    sampled: list[Sampled] = []
    for k in range(row.num_draws):
        processed = _processed(logits[k], row, drafts[:k])
        token_id = _choose(processed, row.params, row.seed, row.draw + k)
        wanted = row.params.logprobs
        sampled.append(
            Sampled(token_id, None if wanted is None else score(logits[k], token_id, wanted))
        )
        if k < len(drafts) and token_id != drafts[k]:
            break
    return tuple(sampled)


def score(logits: NDArray[np.float32], token_id: int, top: int) -> TokenLogprob:
    """How likely the model itself finds a token. logits: (vocab,) float32; top: how many alternatives to tell."""
    peak = float(logits.max())
    total = logits.astype(np.float64)
    total -= peak
    log_total = math.log(np.exp(total, out=total).sum())
    best = _largest(logits, top)
    best = best[np.argsort(-logits[best], kind="stable")]
    values = logits[best].astype(np.float64) - peak - log_total
    return TokenLogprob(
        token_id=token_id,
        logprob=float(logits[token_id]) - peak - log_total,
        rank=int(np.count_nonzero(logits >= logits[token_id])),
        top=tuple(zip(best.tolist(), values.tolist(), strict=True)),
    )


def uniform(seed: int, number: int) -> float:
    """Number `number` (from 0) of seed's sequence, in [0, 1) with 53 bits.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014): any number of the
    sequence is computed without those before it, so there is no state to keep, copy or lose.
    """
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def _processed(logits: NDArray[np.float32], row: Row, accepted: Sequence[int]) -> Logits:
    """Bias, penalties and removals, at the draw that follows the accepted drafts. (vocab,)"""
    params = row.params
    banned = list(row.banned_ids) if len(accepted) < row.num_banned_draws else []
    if not (params.logit_bias or params.has_penalties or banned or row.constraint):
        return logits
    values = logits.astype(np.float64)
    for token_id, bias in params.logit_bias:
        values[token_id] += bias
    if params.has_penalties:
        _penalise(values, row, accepted)
    if row.constraint is not None:
        bits = np.frombuffer(row.constraint.allowed(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=len(values), bitorder="little").view(np.bool_)
        if not allowed.any():
            raise ValueError("The constraint allows no token.")
        values[~allowed] = -np.inf
    if banned:
        before = values[banned]
        values[banned] = -np.inf
        if values.max() == -np.inf:
            # A grammar that is complete allows the end only, whatever min_tokens says.
            values[banned] = before
    return values


def _penalise(values: NDArray[np.float64], row: Row, accepted: Sequence[int]) -> None:
    params = row.params
    output = np.array([*row.output_ids, *accepted], dtype=np.intp)
    if params.repetition_penalty != 1:
        seen = np.zeros(len(values), dtype=np.bool_)
        seen[output] = True
        seen[np.array(row.prompt_ids, dtype=np.intp)] = True
        old = values[seen]
        values[seen] = np.where(
            old > 0, old / params.repetition_penalty, old * params.repetition_penalty
        )
    if params.presence_penalty or params.frequency_penalty:
        ids, counts = np.unique(output, return_counts=True)
        values[ids] -= params.frequency_penalty * counts + params.presence_penalty


def _choose(logits: Logits, params: SamplingParams, seed: int, number: int) -> int:
    """One token of processed logits (vocab,); the lowest of the most likely if temperature is 0."""
    if params.is_greedy:
        return int(logits.argmax())
    kept = _candidates(logits, params)
    # Made into the weights and their sums in place: arrays of a vocabulary's size cost more to get than to fill.
    weights = (logits if kept is None else logits[kept]).astype(np.float64)
    weights -= weights.max()
    with np.errstate(over="ignore"):  # a temperature near zero: minus infinity, weight 0, is right
        weights /= params.temperature
    np.exp(weights, out=weights)
    if params.top_p < 1:
        nucleus = _nucleus(weights, params.top_p)
        kept, weights = nucleus if kept is None else kept[nucleus], weights[nucleus]
    if params.min_p > 0:
        likely = np.flatnonzero(weights >= params.min_p * weights.max())
        kept, weights = likely if kept is None else kept[likely], weights[likely]
    cumulative = weights.cumsum(out=weights)
    index = int(cumulative.searchsorted(uniform(seed, number) * cumulative[-1], side="right"))
    if index == len(cumulative):  # u * total was rounded up to total: the last token of any weight
        index = int(cumulative.searchsorted(cumulative[-1]))
    return index if kept is None else int(kept[index])


def _candidates(logits: Logits, params: SamplingParams) -> Ids | None:
    """Ascending ids that are worth a weight: what top_k keeps, or a little more than what min_p keeps. None: all."""
    if 0 < params.top_k < len(logits):
        return _largest(logits, params.top_k)
    if params.min_p > 0 and params.top_p >= 1:
        lowest = float(logits.max()) + params.temperature * math.log(params.min_p * (1 - 1e-6))
        kind = logits.dtype.type
        return np.flatnonzero(logits >= np.nextafter(kind(lowest), kind(-np.inf)))
    return None


def _nucleus(weights: NDArray[np.float64], top_p: float) -> Ids:
    """Ascending indices of the smallest prefix, in descending weight, with at least top_p of the mass."""
    target = top_p * weights.sum()
    # All weights below this one together are less than half of what may be left out: no need to sort them.
    lowest = (1 - top_p) * weights.sum() / (2 * len(weights))
    indices = np.flatnonzero(weights >= lowest)
    sure, mass = indices[:0], 0.0
    if len(indices) > SORTED_AT_MOST:
        # Nor those of a flat distribution: only the bin in which the target lies. The upper bits of a positive
        # float64, as an integer, grow with its value: here in eight bins to a factor of two.
        bins = weights[indices].view(np.int64) >> 49
        bins = bins.max() - bins
        masses = np.bincount(bins, weights[indices]).cumsum()
        last = min(int(masses.searchsorted(target)), len(masses) - 1)
        sure, mass = indices[bins < last], masses[last - 1] if last else 0.0
        indices = indices[bins == last]
    indices = indices[np.argsort(-weights[indices], kind="stable")]
    count = int((mass + weights[indices].cumsum()).searchsorted(target)) + 1
    return np.sort(np.concatenate((sure, indices[:count])))


def _largest(values: Logits, count: int) -> Ids:
    """Ascending indices of the count largest; of equal ones the lower indices."""
    size = len(values)
    if count >= size:
        return np.arange(size)
    if count <= 0:
        return np.arange(0)
    indices: Ids | None = None
    columns = size // 64
    if 2 * count < columns:
        # count column maxima are at least `lowest`, so count values are: one cheap pass instead of a partition.
        maxima = values[: 64 * columns].reshape(64, columns).max(axis=0)
        lowest = np.partition(maxima, columns - count)[columns - count]
        indices = np.flatnonzero(values >= lowest)
    else:
        indices = np.arange(size)
    rest = values[indices]
    last = np.partition(rest, len(rest) - count)[len(rest) - count]
    above = indices[rest > last]
    equal = indices[rest == last][: count - len(above)]
    return np.sort(np.concatenate((above, equal)))
