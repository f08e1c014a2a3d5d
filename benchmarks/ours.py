"""Our own server, by its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.adapters import adapter_names
from benchmarks.client import Target
from benchmarks.measure import Server
from benchmarks.process import ROOT

NAME = "lorachat"


def lorachat(model: Path, adapters: Path, threads: int, max_running: int) -> Server:
    names = adapter_names(8)
    return Server(
        name=NAME,
        version=_version(),
        command=lambda port: [
            sys.executable, "-m", "server", "--model", str(model), "--adapters", str(adapters),
            "--port", str(port), "--threads", str(threads), "--max-running", str(max_running),
        ],
        environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
        targets={
            "base": [Target("base")],
            "one": [Target(names[0])],
            "eight": [Target(name) for name in names],
        },
    )  # fmt: skip


def _version() -> str:
    """The commit, with a plus where the server's files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "server"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed.returncode else "")
