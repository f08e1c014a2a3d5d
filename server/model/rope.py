"""The rotary table (RoPE, arXiv:2104.09864): cos and sin for every position, with the scalings the families use.

The same float32 operations as transformers' rotary modules, because a frequency's last bit becomes a visible angle a
few thousand positions on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelLoadError
from server.model.config import DecoderConfig

Floats = NDArray[np.float32]
# Of a GGUF file: the frequencies are divided by the numbers it stores, in whatever way these were made.
FACTORS = "factors"


def rotary_table(
    settings: Mapping[str, Any], config: DecoderConfig, positions: int
) -> tuple[Floats, Floats]:
    """cos and sin, each (positions, head_dim // 2) float32; the second half of a head repeats the first.

    settings: the checkpoint's configuration, `rope_parameters` as transformers 5 writes it, or `rope_scaling` and
    `rope_theta` as before. Raises ModelLoadError for a scaling that is not known or lacks a number.
    """
    rope = _parameters(settings)
    frequencies, attention_scaling = _frequencies(rope, config.head_dim, settings)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    # numpy's float32 sine loses bits at large angles; its float64 one, rounded, is correct.
    wide = angles.astype(np.float64)
    scale = np.float32(attention_scaling)
    return np.cos(wide).astype(np.float32) * scale, np.sin(wide).astype(np.float32) * scale


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ModelLoadError(f"its rotary parameters are {rope!r}.")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelLoadError("rotary parameters that differ between layers are not served.")
    rope = dict(rope)
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", settings.get("rope_theta", 10000.0))
    partial = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ModelLoadError(f"partial_rotary_factor={partial!r} is not served, only 1.")
    if "original_max_position_embeddings" in settings:
        rope["original_max_position_embeddings"] = settings["original_max_position_embeddings"]
    rope.setdefault("original_max_position_embeddings", settings.get("max_position_embeddings"))
    return rope


def _frequencies(
    rope: Mapping[str, Any], dim: int, settings: Mapping[str, Any]
) -> tuple[Floats, float]:
    """(dim // 2,) angles per position, and what cos and sin are multiplied by."""
    scaling = SCALINGS.get(rope["rope_type"])
    if scaling is None:
        raise ModelLoadError(
            f"rotary scaling {rope['rope_type']!r} is not served, only: {', '.join(sorted(SCALINGS))}."
        )
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # Rounded once, from float64: numpy's float32 power is off by a bit where torch's seldom is.
    periods = (_number(rope, "rope_theta") ** exponents.astype(np.float64)).astype(np.float32)
    frequencies, attention_scaling = scaling(rope, periods, settings)
    return frequencies.astype(np.float32), attention_scaling


def _default(_: Mapping[str, Any], periods: Floats, __: Mapping[str, Any]) -> tuple[Floats, float]:
    return np.reciprocal(periods), 1.0


def _linear(rope: Mapping[str, Any], periods: Floats, _: Mapping[str, Any]) -> tuple[Floats, float]:
    return np.divide(np.reciprocal(periods), _number(rope, "factor"), dtype=np.float32), 1.0


def _llama3(rope: Mapping[str, Any], periods: Floats, _: Mapping[str, Any]) -> tuple[Floats, float]:
    """Llama 3.1: long waves are slowed down, short ones kept, the ones between blended."""
    factor = _number(rope, "factor")
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    trained = _number(rope, "original_max_position_embeddings")
    if high <= low:
        raise ModelLoadError("rotary scaling 'llama3' needs high_freq_factor > low_freq_factor.")
    frequencies = np.reciprocal(periods)
    waves = np.float32(2 * math.pi) / frequencies
    scaled = np.where(
        waves > np.float32(trained / low), frequencies / np.float32(factor), frequencies
    )
    smooth = (np.float32(trained) / waves - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * scaled / np.float32(factor) + smooth * scaled
    between = ~(waves < np.float32(trained / high)) & ~(waves > np.float32(trained / low))
    return np.where(between, blended, scaled), 1.0


def _yarn(
    rope: Mapping[str, Any], periods: Floats, settings: Mapping[str, Any]
) -> tuple[Floats, float]:
    """YaRN (arXiv:2309.00071): interpolation ramps in over the dimensions; attention is scaled with it."""
    trained = _number(rope, "original_max_position_embeddings")
    if rope.get("factor") is None:
        factor = _number(settings, "max_position_embeddings") / trained
    else:
        factor = _number(rope, "factor")
    dim = 2 * periods.shape[0]
    theta = _number(rope, "rope_theta")
    if theta <= 1:
        raise ModelLoadError(f"rotary scaling 'yarn' needs a rope_theta over 1, not {theta}.")

    def dimension_of(rotations: float) -> float:
        return float(dim) * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first = dimension_of(_number(rope, "beta_fast") if rope.get("beta_fast") else 32.0)
    last = dimension_of(_number(rope, "beta_slow") if rope.get("beta_slow") else 1.0)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001  # as transformers does, so that nothing is divided by zero
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    keep = 1 - np.clip(ramp, 0, 1)
    interpolated = np.reciprocal(np.float32(factor) * periods)
    frequencies = interpolated * (1 - keep) + np.reciprocal(periods) * keep
    return frequencies, _yarn_attention(rope, factor)


def _yarn_attention(rope: Mapping[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor")

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(_number(rope, "mscale")) / mscale(_number(rope, "mscale_all_dim"))
    return mscale(1.0)


def _factors(
    rope: Mapping[str, Any], periods: Floats, _: Mapping[str, Any]
) -> tuple[Floats, float]:
    factors = np.asarray(rope[FACTORS], dtype=np.float32)
    if factors.shape != periods.shape or not (np.isfinite(factors) & (factors > 0)).all():
        raise ModelLoadError(f"its rotary factors have shape {factors.shape} or are not positive.")
    return np.reciprocal(periods * factors), 1.0


_Scaling = Callable[[Mapping[str, Any], Floats, Mapping[str, Any]], tuple[Floats, float]]
# Those that depend on the position only. Others ("dynamic", "longrope") change with the length of the text so far.
SCALINGS: Mapping[str, _Scaling] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    FACTORS: _factors,
}


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelLoadError(f"its rotary parameters have {name}={value!r}, not a positive number.")
    return float(value)
