"""One measurement of one server: start, loads, conversations and memory, with the bandwidth probe around it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.client import Target, ask, open_client
from benchmarks.figures import Level, Turns
from benchmarks.load import run_conversations, run_level
from benchmarks.probe import bandwidth
from benchmarks.process import ServerProcess, free_port, machine_cpu_seconds
from benchmarks.workload import BLOCK_REQUESTS, Workload

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How do I boil an egg?",
)
# Requests of a level by its concurrency; others get two for each concurrent user.
REQUESTS = {1: 8, 4: 16, 8: 24, 16: 32}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. seed decides the prompts; data: a folder with recorded chats, None for the written ones.

    conversations: how many, of four turns each; 0 leaves them out.
    """

    concurrencies: tuple[int, ...]
    max_tokens: int
    limit_seconds: float
    conversations: int
    seed: int
    data: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one server with one kind of models asked for. Memory in bytes, bandwidth in GB/s.

    kind: base, one (adapter) or eight (adapters in turn). answers: to QUESTIONS, greedy, by the kind's first model:
    equal weights and an applied adapter show in equal answers. others_cpu: share of the machine's processor time during
    the load that neither the server nor the client used; with more than a few hundredths the run was disturbed.
    """

    server: str
    version: str
    model: str
    kind: str
    at: str
    threads: int
    bandwidth_before: float
    bandwidth_after: float
    first_token_seconds: float | None
    peak_bytes: int | None
    levels: tuple[Level, ...]
    turns: Turns | None
    answers: tuple[str, ...] = ()
    others_cpu: float | None = None

    @property
    def bandwidth(self) -> float:
        return (self.bandwidth_before + self.bandwidth_after) / 2


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started and asked. targets: what each kind names.

    command: from a port to the command line. One server may serve several kinds (kinds that need other flags are
    other Servers with the same name).
    """

    name: str
    version: str
    command: Callable[[int], Sequence[str]]
    environment: Mapping[str, str]
    targets: Mapping[str, Sequence[Target]]
    start_seconds: float = 180
    concurrencies: tuple[int, ...] | None = (
        None  # fewer than the plan's, where more would take for ever
    )


def measure(
    server: Server, kinds: Iterable[str], model: str, plan: Plan, threads: int, log: Path
) -> list[Run]:
    """Starts the server, measures each kind after the other, ends it. Raises ServerError if it does not come up."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    workload = Workload(plan.seed, plan.data)
    runs = []
    before = bandwidth(threads)
    with ServerProcess(server.command(port), url, log, server.environment) as process:
        kinds = [kind for kind in kinds if kind in server.targets]
        first_token = process.wait_for_first_token(
            server.targets[kinds[0]][0], server.start_seconds
        )
        for kind in kinds:
            targets = server.targets[kind]
            answers = asyncio.run(_answers(url, targets[0]))
            clock = _Clock(process)
            levels, turns = asyncio.run(_load(url, targets, server, plan, workload))
            others_cpu = clock.others()
            after = bandwidth(threads)
            runs.append(
                Run(
                    server=server.name,
                    version=server.version,
                    model=model,
                    kind=kind,
                    at=datetime.now(UTC).isoformat(timespec="seconds"),
                    threads=threads,
                    bandwidth_before=before,
                    bandwidth_after=after,
                    first_token_seconds=first_token,
                    peak_bytes=process.peak_bytes,
                    levels=tuple(levels),
                    turns=turns,
                    answers=tuple(answers),
                    others_cpu=others_cpu,
                )
            )
            before = after
    return runs


class _Clock:
    """Counts, from its making on, whose the machine's processor time was."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._begun = time.monotonic()
        self._foreign = self._foreign_seconds()

    def others(self) -> float:
        seconds = (time.monotonic() - self._begun) * (os.cpu_count() or 1)
        return max(0.0, (self._foreign_seconds() - self._foreign) / seconds)

    def _foreign_seconds(self) -> float:
        return machine_cpu_seconds() - self._process.cpu_seconds() - time.process_time()


async def _answers(url: str, target: Target) -> list[str]:
    async with open_client(url) as client:
        samples = [
            await ask(client, target, [{"role": "user", "content": question}], 24)
            for question in QUESTIONS
        ]
    return [sample.recording.text for sample in samples]


async def _load(
    url: str, targets: Sequence[Target], server: Server, plan: Plan, workload: Workload
) -> tuple[list[Level], Turns | None]:
    levels = []
    async with open_client(url) as client:
        # Not measured: the first requests pay for what is made once (thread pools, scratch memory, adapters).
        warm_up = workload.take(BLOCK_REQUESTS)[-2:]
        await run_level(
            client, targets, warm_up, concurrency=2, max_tokens=8, limit_seconds=plan.limit_seconds
        )
        for concurrency in plan.concurrencies:
            chats = workload.take(REQUESTS.get(concurrency, 2 * concurrency))
            if server.concurrencies is not None and concurrency not in server.concurrencies:
                continue
            levels.append(
                await run_level(
                    client,
                    targets,
                    chats,
                    concurrency=concurrency,
                    max_tokens=plan.max_tokens,
                    limit_seconds=plan.limit_seconds,
                )
            )
        turns = None
        if plan.conversations:
            turns = await run_conversations(
                client,
                targets[0],
                workload,
                conversations=plan.conversations,
                turns=4,
                max_tokens=plan.max_tokens,
            )
    return levels, turns
