"""How long one step takes on a machine: the roofline, calibrated by this project's own measurements.

The simulation (benchmarks/simulation) and the plan use this same function. It knows nothing of HTTP, of speculation
(which makes real steps yield more) or of machines whose cores differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.sizing.model_cost import ModelCost

# Shares of a machine's rate in a large float32 matrix product that the native decoder reaches, and what an adapter's
# bytes cost beside the base's: fitted to the table "A decoding step alone" of docs/results/serving.md (one machine,
# 27 GB/s and 270 GFLOP/s; tests/server/test_sizing.py holds the fit to it).
DECODING_SHARE = 0.64  # few rows: each weight is used once or a few times after it was read
PROMPT_SHARE = 0.95
ADAPTER_READS = 1.8  # small matrices in many places are read at about half the rate of large ones


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica's machine. bandwidth: bytes/s of memory. flops: FLOP/s of a large float32 matrix product.

    price_per_hour: in any currency.
    """

    memory_bytes: int
    bandwidth: float
    flops: float
    price_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes, as means or as counts.

    decoding_tokens: tokens after each of which one is drawn. prompt_tokens: the others. cache_tokens: positions whose
    keys and values are read, summed over rows. attended: pairs of a token and a position it attends to.
    adapters: different adapters in the step.
    """

    decoding_tokens: float
    prompt_tokens: float
    cache_tokens: float
    attended: float
    adapters: float = 0.0


def step_seconds(model: ModelCost, machine: Machine, work: StepWork) -> float:
    """√(reading² + computing²), in seconds.

    Williams, Waterman and Patterson's roofline (CACM 52(4), 2009, doi:10.1145/1498765.1498785) takes the larger of
    the two; measured steps round its corner, where both matter, and the root of the sum of squares follows them.

    reading = (weights + 1.8 · adapters + keys and values) / bandwidth
    computing = decoding FLOP / (0.64 · flops) + prompt FLOP / (0.95 · flops)
    """
    read = (
        model.weight_bytes
        + ADAPTER_READS * work.adapters * model.adapter_bytes
        + work.cache_tokens * model.cache_bytes_per_token
    )
    decoding = work.decoding_tokens * (model.body_flops + model.output_flops)
    prompt = (
        work.prompt_tokens * model.body_flops + work.attended * model.attention_flops_per_position
    )
    computing = decoding / (DECODING_SHARE * machine.flops) + prompt / (
        PROMPT_SHARE * machine.flops
    )
    return math.hypot(read / machine.bandwidth, computing)
