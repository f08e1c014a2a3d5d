"""Measures how long a running stream pauses while a long prompt arrives: `python -m benchmarks.gap --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx

from benchmarks.client import Target, open_client
from benchmarks.machine import this_machine
from benchmarks.models import DEFAULT_OUTPUT, embedded_model
from benchmarks.ours import lorachat
from benchmarks.process import ServerError, ServerProcess, exit_on_sigterm, free_port
from benchmarks.table import machine_line

DESCRIPTION = """For each limit of prompt tokens beside running answers (--max-prefill-tokens) our server is started,
one answer is streamed, and in the middle of it another request brings a prompt of 8000 tokens. Prints the time between
two tokens of the running stream (median, 99th percentile, worst) before the prompt came and while it was computed, and
the prompt's time to its first token. Drafts are off, so that one event is one token."""

START_SECONDS = 300.0
ALONE = 200  # tokens that are streamed before the prompt comes


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds between two tokens of the running stream, ascending; and the long prompt's time to its first token."""

    alone: tuple[float, ...]
    beside: tuple[float, ...]
    first_token_seconds: tuple[float, ...]


def pauses(times: Sequence[float], begun: float, ended: float) -> tuple[list[float], list[float]]:
    """times: at which tokens came, ascending. -> the gaps that were over before begun, and those that end between begun
    and the first token after `ended`."""
    alone, beside = [], []
    for before, after in pairwise(times):
        if after <= begun:
            alone.append(after - before)
        elif before < ended:
            beside.append(after - before)
    return alone, beside


def quantile(ascending: Sequence[float], part: float) -> float:
    """The smallest value that so large a part of the values does not exceed."""
    return ascending[max(0, -(-int(part * 1000) * len(ascending) // 1000) - 1)]


async def measure_once(
    client: httpx.AsyncClient, prompt: list[int]
) -> tuple[list[float], float, float]:
    """(times of the running stream's tokens, when the prompt was sent, when its first token came)."""
    times: list[float] = []
    sent = arrived = 0.0
    enough = asyncio.Event()

    async def first_token() -> None:
        nonlocal sent, arrived
        await enough.wait()
        sent = time.perf_counter()
        asked = {"model": "base", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        response = await client.post("/v1/completions", json=asked)
        arrived = time.perf_counter()
        response.raise_for_status()

    task = asyncio.ensure_future(first_token())
    running = {
        "model": "base", "prompt": prompt[:16], "max_tokens": 8000, "temperature": 0, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    try:
        async with client.stream("POST", "/v1/completions", json=running) as response:
            if response.status_code != 200:
                raise ServerError(f"status {response.status_code}: {(await response.aread())!r}")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    times.append(time.perf_counter())
                if len(times) == ALONE:
                    enough.set()
                if task.done():
                    break
        await task
    finally:
        task.cancel()
    return times, sent, arrived


async def measure(url: str, prompt_tokens: int, repeats: int, vocab: int) -> Pauses:
    alone: list[float] = []
    beside: list[float] = []
    first: list[float] = []
    chance = random.Random(0)
    async with open_client(url) as client:
        for _ in range(repeats):
            # New tokens each time: nothing of it is in the prefix cache.
            prompt = [chance.randrange(100, vocab) for _ in range(prompt_tokens)]
            times, sent, arrived = await measure_once(client, prompt)
            one, other = pauses(times, sent, arrived)
            alone += one
            beside += other
            first.append(arrived - sent)
    return Pauses(tuple(sorted(alone)), tuple(sorted(beside)), tuple(sorted(first)))


def row(limit: int, found: Pauses) -> str:
    def three(values: Sequence[float]) -> str:
        parts = (quantile(values, 0.5), quantile(values, 0.99), values[-1])
        return " | ".join(f"{1000 * seconds:.0f}" for seconds in parts)

    first = quantile(found.first_token_seconds, 0.5)
    return f"| {limit} | {three(found.alone)} | {three(found.beside)} | {first:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap", description=DESCRIPTION)
    parser.add_argument(
        "--model", type=Path, default=embedded_model(), help="folder that `make model` printed"
    )
    parser.add_argument(
        "--limits",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[32, 64, 128, 256],
        help="of prompt tokens beside running answers (32,64,128,256)",
    )
    parser.add_argument("--prompt", type=int, default=8000, help="tokens of the prompt (8000)")
    parser.add_argument("--repeats", type=int, default=2, help="prompts for each limit (2)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="for the logs")
    arguments = parser.parse_args()
    exit_on_sigterm()
    volume = arguments.output / "adapters" / "none"
    volume.mkdir(parents=True, exist_ok=True)
    server = lorachat(arguments.model, volume, arguments.threads, max_running=4)
    print(f"{arguments.threads} threads; {machine_line(this_machine())}\n")
    print(
        "| prompt tokens a step | alone p50, ms | p99 | worst | beside p50, ms | p99 | worst"
        " | prompt's first token, s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    try:
        for limit in arguments.limits:
            port = free_port()
            command = [
                *server.command(port),
                "--max-prefill-tokens",
                str(limit),
                "--no-speculation",
            ]
            log = arguments.output / "logs" / f"gap-{limit}.log"
            with ServerProcess(
                command, f"http://127.0.0.1:{port}", log, server.environment
            ) as process:
                process.wait_for_first_token(Target("base"), START_SECONDS)
                # Ids that every vocabulary has.
                found = asyncio.run(
                    measure(process.url, arguments.prompt, arguments.repeats, vocab=10_000)
                )
            print(row(limit, found), flush=True)
    except (ServerError, httpx.HTTPError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
