"""The parity self-test: the log-probabilities that PEFT gave at publishing, computed again by what serves.

The trainer writes a short text's token ids and, for every token but the first, its log-probability given those before
it, from plain PEFT on the float32 base (manifest.json, `probe`). It knows no tensors and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import AdapterError
from server.types import AdapterHandle

FORMAT = "lorachat-probe/1"
MAX_TOKENS = 64  # one step beside running answers computes so many
# Nats, the largest difference of a token's log-probability. Two right decoders differ by the rounding of float32 sums:
# 5e-5 at most with the embedded model's 30 layers, 4e-6 with small ones, in every kernel. A scaling that is 1 % wrong
# makes 1e-2 there, one module of 210 left out 6e-2. (tests/contract/test_probe.py measures it again.)
TOLERANCE = 1e-3

# Natural log-probabilities of token_ids[1:] under an adapter.
Score = Callable[[AdapterHandle, tuple[int, ...]], list[float]]


@dataclass(frozen=True, slots=True)
class Probe:
    """logprobs: nats, of token_ids[1:]."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NoProbe:
    """Why there is nothing to compare with."""

    reason: str


def read_probe(fields: Mapping[str, Any] | None, vocab_size: int) -> Probe | NoProbe:
    """Of a manifest's `probe`, None where it has none. Raises AdapterError for one that cannot be right."""
    if fields is None:
        return NoProbe("its manifest is from before there were probes")
    if fields.get("format") != FORMAT:
        return NoProbe(
            f"its probe has the format {fields.get('format')!r}, which is not known here"
        )
    if "absent" in fields:
        return NoProbe(str(fields["absent"]))
    ids, logprobs = fields.get("token_ids"), fields.get("logprobs")
    if (
        not isinstance(ids, list)
        or not isinstance(logprobs, list)
        or not 2 <= len(ids) <= MAX_TOKENS
        or len(logprobs) != len(ids) - 1
        or not all(type(i) is int and 0 <= i < vocab_size for i in ids)
        or not all(type(p) in (int, float) and -1e6 < p <= 1e-3 for p in logprobs)
    ):
        raise AdapterError("manifest.json has a probe that is none")
    return Probe(tuple(ids), tuple(map(float, logprobs)))


def check_probe(probe: Probe, adapter: AdapterHandle, score: Score) -> float:
    """The largest difference, in nats. Raises AdapterError if it is over the tolerance."""
    computed = score(adapter, probe.token_ids)
    differences = [abs(a - b) for a, b in zip(computed, probe.logprobs, strict=True)]
    worst = max(differences)
    if not worst <= TOLERANCE:  # not a number is no agreement either
        place = differences.index(worst) + 1
        raise AdapterError(
            f"it does not compute what was published: at token {place} of the probe the log-probability is"
            f" {computed[place - 1]:.5f} here and {probe.logprobs[place - 1]:.5f} in the manifest (PEFT's);"
            f" {TOLERANCE} is the tolerance"
        )
    return worst
