"""Measures our server beside its peers: `python -m benchmarks.compare --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import options, store
from benchmarks.machine import this_machine
from benchmarks.measure import Run, Server, measure
from benchmarks.ours import NAME, lorachat
from benchmarks.peers.convert import PeerError
from benchmarks.peers.registry import FLOAT32, PEERS, Setting
from benchmarks.process import ServerError, exit_on_sigterm
from benchmarks.ratios import hardest, kinds_compared, ratios
from benchmarks.table import machine_line, ratios_table, runs_table, servers_table

DESCRIPTION = """Starts servers one after the other, each in its own environment, puts the same load on each, and prints
what each gave and how ours stands to each peer. Runs of the same day in the results file count too, so servers may be
measured one by one; --show measures nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=DESCRIPTION)
    options.add_options(parser)
    names = (NAME, *PEERS)
    parser.add_argument(
        "--only", default=",".join(names), help=f"of {', '.join(names)}, separated by commas"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often all of them are measured in turn (1)"
    )
    parser.add_argument("--show", action="store_true", help="only print what the file has of today")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(names)}")
    exit_on_sigterm()
    machine, path = this_machine(), options.results(arguments)
    missing: dict[str, str] = {}
    try:
        folder, volume = options.model(arguments)
        setting = Setting(folder, volume, arguments.output, arguments.threads, max(arguments.users))
        for _ in range(0 if arguments.show else arguments.rounds):
            for kind in options.kinds(arguments):
                for name in wanted:
                    try:
                        runs = _one(name, kind, setting, arguments)
                    except (PeerError, ServerError) as error:
                        missing[f"{name}, {kind}"] = str(error)
                        print(f"{name}, {kind}: {error}", file=sys.stderr)
                        continue
                    store.append(path, machine, runs)
        every = store.read(path, machine, options.today())
    except (FileNotFoundError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(f"\n{arguments.model}, {arguments.threads} threads; {machine_line(machine)}\n")
    _show(every)
    for name, reason in missing.items():
        print(f"Not measured: {name}: {reason.splitlines()[0]}")
    print(f"Results: {path}")
    return 1 if missing else 0


def _one(name: str, kind: str, setting: Setting, arguments: argparse.Namespace) -> list[Run]:
    """No run where the server cannot do the kind at all."""
    server: Server | None
    if name == NAME:
        server = lorachat(setting.model, setting.volume, setting.threads, setting.users)
    else:
        server = PEERS[name](setting, kind)
    if server is None:
        return []
    print(f"{name}, {kind} …", file=sys.stderr, flush=True)
    log = arguments.output / "logs" / f"{name}-{kind}.log"
    return measure(server, [kind], arguments.model, options.plan(arguments), arguments.threads, log)


def _show(runs: Sequence[Run]) -> None:
    print(runs_table(runs), "\n")
    print(servers_table(runs, NAME), "\n")
    found = ratios(runs, NAME)
    parts = {
        "Ours against the best float32 peer of each figure": hardest(found, FLOAT32),
        "Ours with adapters against ours with fewer": kinds_compared(runs, NAME),
        "Ours against each peer": found,
    }
    for title, part in parts.items():
        if part:
            print(f"{title}\n\n{ratios_table(part)}\n")


if __name__ == "__main__":
    sys.exit(main())
