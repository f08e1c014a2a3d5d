"""Measures the server under Ray with one engine and with several: `python -m benchmarks.ray_replicas --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import options, store
from benchmarks.machine import this_machine
from benchmarks.measure import Run, Server, measure
from benchmarks.ours import lorachat
from benchmarks.process import ROOT, ServerError, exit_on_sigterm
from benchmarks.table import machine_line, markdown, runs_table

DESCRIPTION = """The same load on the server alone, on one engine under Ray with all threads (what Ray costs), on one
engine with one thread, and on several with one thread each (what engines add). Needs the environment that `make ray`
makes. Prints Markdown tables and adds the runs to a JSON file."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ray_replicas", description=DESCRIPTION
    )
    options.add_options(parser)
    parser.add_argument(
        "--environment", type=Path, default=ROOT / ".venv-ray", help="has Ray in it"
    )
    arguments = parser.parse_args()
    exit_on_sigterm()
    machine, runs = this_machine(), []
    try:
        for server in servers(arguments):
            runs += measure(
                server,
                ["base"],
                arguments.model,
                options.plan(arguments),
                arguments.threads,
                arguments.output / "logs" / f"{server.name.replace(' ', '-')}.log",
            )
            store.append(options.results(arguments), machine, runs[-1:])
    except (ServerError, FileNotFoundError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.model}, {arguments.threads} threads in all; {machine_line(machine)}\n")
    print(requests_table(runs), "\n")
    print(runs_table(runs), "\n")
    print(f"Added to {options.results(arguments)}")
    return 1 if any(level.errors for run in runs for level in run.levels) else 0


def servers(arguments: argparse.Namespace) -> list[Server]:
    folder, volume = options.model(arguments)
    most, threads = max(arguments.users), arguments.threads
    alone = lorachat(folder, volume, threads, max_running=most)
    python = arguments.environment / "bin" / "python"
    if not python.is_file():
        raise FileNotFoundError(f"{python} is not there. `make ray` makes it.")

    def under_ray(replicas: int, threads_each: int) -> Server:
        return replace(
            alone,
            name=f"ray {replicas} x {threads_each}",
            command=lambda port: [
                str(python), "-m", "server", "ray", "--model", str(folder), "--adapters", str(volume),
                "--port", str(port), "--replicas", str(replicas), "--threads", str(threads_each),
                "--max-running", str(most), "--max-waiting", str(most),
            ],
            targets={"base": alone.targets["base"]},
        )  # fmt: skip

    return [alone, under_ray(1, threads), under_ray(1, 1), under_ray(threads, 1)]


def requests_table(runs: Sequence[Run]) -> str:
    """Requests and output tokens per second, and what they are of the first server's."""
    first = {level.concurrency: level for level in runs[0].levels}
    rows = []
    for run in runs:
        for level in run.levels:
            done = (level.requests - level.errors) / level.seconds
            ratio = level.tokens_per_second / first[level.concurrency].tokens_per_second
            memory = "–" if run.peak_bytes is None else f"{run.peak_bytes / 1e9:.1f}"
            rows.append(
                [
                    run.server,
                    str(level.concurrency),
                    f"{done:.2f}",
                    f"{level.tokens_per_second:.1f}",
                    f"{ratio:.2f}",
                    memory,
                ]
            )
    return markdown(
        ["engines x threads", "users", "requests/s", "tok/s", "of the server alone", "memory, GB"],
        rows,
    )


if __name__ == "__main__":
    sys.exit(main())
