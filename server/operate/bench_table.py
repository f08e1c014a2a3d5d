"""Bench numbers as a small table, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from server.operate.bench import Numbers
from server.operate.finding import gib


def table(numbers: Numbers) -> str:
    rows = [
        ("model", f"{numbers.model}, kernel {numbers.kernel}, weights {numbers.weights}"),
        ("loaded in", f"{numbers.load_seconds:.1f} s"),
        ("memory, at most", gib(numbers.peak_memory_bytes)),
        ("bandwidth", f"{numbers.bandwidth / 1e9:.1f} GB/s read by {numbers.threads} threads"),
        ("first token", f"{numbers.first_token_seconds * 1e3:.0f} ms (median, one user, short prompt)"),
        ("prompt", f"{numbers.prompt_tokens_per_second:.0f} tokens/s (one prompt of {numbers.prompt_tokens})"),
    ]  # fmt: skip
    for users, speed in numbers.tokens_per_second.items():
        each = "" if users == 1 else f", {speed / users:.1f} each"
        rows.append((f"{users} user{'s' * (users > 1)}", f"{speed:.1f} tokens/s{each}"))
    if numbers.adapter is not None:
        name, speed = numbers.adapter
        rows.append(("1 user, adapter", f"{speed:.1f} tokens/s ({name})"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([*(f"{name:<{width}}  {said}" for name, said in rows), "", verdict(numbers)])


def verdict(numbers: Numbers) -> str:
    """How the speed of one stream relates to what the memory allows."""
    speed = numbers.tokens_per_second.get(1, 0.0)
    share = speed / numbers.ceiling
    said = (
        f"Each step reads {numbers.step_bytes / 1e9:.2f} GB of weights, so one stream can have at most"
        f" {numbers.ceiling:.1f} tokens/s at this bandwidth; it has {share:.0%} of that."
    )
    if share > 1.05:
        return f"{said} More than all: a part of the weights stays in the processor's cache."
    if share < 0.5:
        return (
            f"{said} The cores limit it, not the memory: see `python -m server doctor` for threads and kernel, and"
            " what else runs here."
        )
    return f"{said} More users share each reading, so all together get more."


def as_json(numbers: Numbers) -> str:
    whole = asdict(numbers)
    whole["ceiling_tokens_per_second"] = numbers.ceiling
    whole["share_of_ceiling"] = numbers.tokens_per_second.get(1, 0.0) / numbers.ceiling
    if numbers.adapter is not None:
        name, speed = numbers.adapter
        whole["adapter"] = {"model": name, "tokens_per_second": speed}
    return json.dumps(whole, indent=2)
