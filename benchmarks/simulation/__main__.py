"""SIMULATED serving on 1 to 1,000 replicas: `python -m benchmarks.simulation --help`.

Arrivals, lengths and step times are models (traffic.py, server/sizing/step_time.py); scheduler, block pool and prefix
cache are the server's own. No refusals: queues are as long as they get. No speculation, no adapters, no network.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Mapping
from functools import partial

from benchmarks.simulation.replica import Hardware
from benchmarks.simulation.routing import ROUTERS
from benchmarks.simulation.run import Outcome, router_chance, simulate
from benchmarks.simulation.traffic import MAX_CONTEXT, SCENARIOS, conversations
from server.engine.scheduler import Limits
from server.sizing.model_cost import ModelCost, weight_bytes
from server.sizing.plan import Limits as Defaults
from server.sizing.plan import SizingError, memory
from server.sizing.shapes import SHAPES, shape_like
from server.sizing.step_time import Machine

BLOCK_SIZE = 32  # positions, as in the native decoder
CONTEXT = 8192


def hardware(like: str, memory_gb: float, bandwidth: float, gflops: float) -> Hardware:
    """A replica with the server's default settings. GB, GB/s and GFLOP/s are powers of ten."""
    config = shape_like(like)
    model = ModelCost(config, weight_bytes(config, "bfloat16"))
    machine = Machine(int(memory_gb * 1e9), bandwidth * 1e9, gflops * 1e9)
    parts = memory(model, machine, min(CONTEXT, config.max_positions), adapters=0)
    defaults = Defaults()
    return Hardware(
        model,
        machine,
        Limits(
            max_running=defaults.max_running,
            max_step_tokens=defaults.max_step_tokens,
            prefill_tokens_beside_decoding=defaults.max_prefill_tokens,
            draft_tokens_per_step=0,
        ),
        num_blocks=parts.kv_cache // (model.cache_bytes_per_token * BLOCK_SIZE),
        block_size=BLOCK_SIZE,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation",
        description="SIMULATED: routing policies over replicas of the server.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--scenarios", type=partial(_known, SCENARIOS), default=",".join(SCENARIOS))
    parser.add_argument("--policies", type=partial(_known, ROUTERS), default=",".join(ROUTERS))
    parser.add_argument("--replicas", type=_counts, default="1,8")
    parser.add_argument(
        "--requests", type=_count, default=150, help="per replica; of all replicas --most at most"
    )
    parser.add_argument("--most", type=_count, default=6000, help="requests of a run")
    parser.add_argument(
        "--rate", type=_positive, default=0.6, help="requests/s that come to a replica on average"
    )
    parser.add_argument("--arrivals", choices=("poisson", "bursty"), default="poisson")
    parser.add_argument("--like", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--memory", type=_positive, default=25.0, help="of a replica, GB")
    parser.add_argument("--bandwidth", type=_positive, default=27.0, help="GB/s")
    parser.add_argument("--gflops", type=_positive, default=270.0, help="in a large matrix product")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        machine = hardware(options.like, options.memory, options.bandwidth, options.gflops)
    except SizingError as error:
        parser.error(str(error))
    if machine.num_blocks * BLOCK_SIZE < MAX_CONTEXT:
        parser.error(f"the KV cache holds less than {MAX_CONTEXT} tokens: give --memory more")
    print(
        f"SIMULATED: {options.like}, {options.bandwidth:g} GB/s, {options.gflops:g} GFLOP/s, KV cache of"
        f" {machine.num_blocks * machine.block_size:,} tokens, {options.rate:g} requests/s a replica,"
        f" {options.arrivals} arrivals, seed {options.seed}\n"
    )
    print(
        "| traffic | replicas | policy | requests | requests/s | tokens/s | first token p50 s | p99 s |"
        " found in cache | busy |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    begun, verdicts = time.perf_counter(), []
    for name in options.scenarios:
        scenario = SCENARIOS[name]
        for replicas in options.replicas:
            talks = conversations(
                scenario,
                requests=min(options.most, options.requests * replicas),
                per_second=options.rate * replicas / scenario.mean_turns,
                arrivals=options.arrivals,
                seed=options.seed,
            )
            found = {}
            for policy in options.policies if replicas > 1 else options.policies[:1]:
                router = ROUTERS[policy](router_chance(options.seed))
                outcome = simulate(machine, router, talks, replicas)
                found[policy] = outcome
                print(_line(name, policy if replicas > 1 else "–", outcome), flush=True)
            if {"prefix", "affinity"} <= found.keys():
                verdicts.append(_verdict(name, replicas, found))
    if verdicts:
        print("\n" + "\n".join(verdicts))
    print(f"{time.perf_counter() - begun:.0f} s to simulate", file=sys.stderr)
    return 0


def _line(scenario: str, policy: str, o: Outcome) -> str:
    return (
        f"| {scenario} | {o.replicas} | {policy} | {o.requests} | {o.requests_per_second:.2f} |"
        f" {o.tokens_per_second:.0f} |"
        f" {o.first_token(50):.2f} | {o.first_token(99):.2f} | {o.hit_share:.0%} | {o.busy_share:.0%} |"
    )


def _verdict(scenario: str, replicas: int, found: Mapping[str, Outcome]) -> str:
    """Whether routing by prefix pays, beside what any balancer can do."""
    prefix, kept = found["prefix"], found["affinity"]
    return (
        f"- {scenario}, {replicas} replicas: prefix beside affinity finds {prefix.hit_share:.0%} against"
        f" {kept.hit_share:.0%}, first token p99 {prefix.first_token(99):.2f} against {kept.first_token(99):.2f} s"
    )


def _count(text: str) -> int:
    value = _whole(text)
    if not 1 <= value <= 10**6:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 1,000,000")
    return value


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 and less than 10^9")
    return value


def _known(known: Collection[str], text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r}: choose from {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
