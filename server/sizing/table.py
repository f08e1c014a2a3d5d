"""A plan as text for a terminal: what is needed, what it gives, what was assumed."""

from __future__ import annotations

from collections.abc import Sequence

from server.sizing.model_cost import ModelCost
from server.sizing.plan import Load, Plan
from server.sizing.step_time import Machine


def table(
    name: str, model: ModelCost, machine: Machine, load: Load, plan: Plan, assumed: Sequence[str]
) -> str:
    parts, pace = plan.memory, plan.pace
    rows = [
        ("replicas", f"{plan.replicas}"),
        ("users per replica", f"{plan.users_per_replica:.1f}, planned at {load.utilisation:.0%}"),
        ("", ""),
        ("memory of a replica", f"{_gb(parts.total)} of {_gb(machine.memory_bytes)}"),
        ("  weights", _gb(parts.weights)),
        *(
            [("  adapters", f"{_gb(parts.adapters)}, {_mb(model.adapter_bytes)} each")]
            if load.adapters
            else []
        ),
        (
            "  KV cache",
            f"{_gb(parts.kv_cache)}: {plan.cache_tokens:,} tokens of"
            f" {model.cache_bytes_per_token / 1e3:.1f} kB",
        ),
        ("  reserved", _gb(parts.reserved)),
        ("", ""),
        (
            "answers at the same time",
            f"{pace.concurrency} per replica, limited by {plan.limited_by}",
        ),
        ("tokens/s of each", f"{1 / pace.token_seconds:.1f} at that moment"),
        ("first token", f"{pace.first_token_seconds:.2f} s on average"),
        ("tokens/s of a replica", f"{pace.tokens_per_second:.1f} when full"),
        ("requests/s of the load", f"{plan.requests_per_second:.2f}"),
        ("tokens/s of the load", f"{plan.tokens_per_second:.1f}"),
    ]
    if machine.price_per_hour:
        rows.append(
            ("per million answer tokens", f"{plan.cost_per_million:.2f} at this load, all the time")
        )
    width = max(len(label) for label, _ in rows)
    lines = [
        f"{name}: {load.users} users, {load.prompt_tokens:.0f} tokens in ({load.cached_share:.0%} cached),"
        f" {load.answer_tokens:.0f} out, {load.think_seconds:.0f} s between; an estimate",
        "",
        *(f"{label:<{width}}  {value}".rstrip() for label, value in rows),
    ]
    notes = [f"assumed: {text}" for text in assumed]
    if load.cached_share and plan.warm_conversations < plan.users_per_replica - pace.concurrency:
        notes.append(
            f"the KV cache keeps {max(0.0, plan.warm_conversations):.0f} conversations beside the running ones, fewer"
            f" than the {plan.users_per_replica:.0f} of a replica: the cached share will be lower"
        )
    if (in_use := load.adapters * model.adapter_bytes) > parts.adapters:
        notes.append(
            f"the server keeps {_gb(parts.adapters)} of adapters in memory: of {_gb(in_use)} in use some are read"
            " from the volume again and again, which is not counted here (--adapter-memory-gib)"
        )
    if plan.replicas > 1 and load.cached_share:
        notes.append(
            "with several replicas the cached share holds only if a conversation stays on one of them (docs/scaling.md)"
        )
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
