"""Measures our own server: `python -m benchmarks.serve --help`."""

from __future__ import annotations

import argparse
import sys

from benchmarks import options, store
from benchmarks.machine import this_machine
from benchmarks.measure import measure
from benchmarks.ours import NAME, lorachat
from benchmarks.process import ServerError, exit_on_sigterm
from benchmarks.table import machine_line, runs_table, servers_table

DESCRIPTION = """Starts our server and measures it under load: base, one adapter, eight adapters in turn, at several
numbers of users, and conversations. Prints Markdown tables and adds the runs to a JSON file."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=DESCRIPTION)
    options.add_options(parser)
    arguments = parser.parse_args()
    exit_on_sigterm()
    machine = this_machine()
    try:
        folder, volume = options.model(arguments)
        server = lorachat(folder, volume, arguments.threads, max_running=max(arguments.users))
        runs = measure(
            server,
            options.kinds(arguments),
            arguments.model,
            options.plan(arguments),
            arguments.threads,
            arguments.output / "logs" / "lorachat.log",
        )
        store.append(options.results(arguments), machine, runs)
    except (ServerError, FileNotFoundError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.model}, {arguments.threads} threads; {machine_line(machine)}\n")
    print(runs_table(runs), "\n")
    print(servers_table(runs, NAME), "\n")
    print(f"Added to {options.results(arguments)}")
    failed = sum(level.errors for run in runs for level in run.levels)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
