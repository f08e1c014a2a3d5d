"""Publishes over and over in child processes, each killed one system call later than the one before.

`python publish_and_die.py ADAPTER REPORT VOLUME`. A new child is forked for every point of death, so that the heavy
imports are paid for once. Prints, per child, a JSON line: the call it died at, and what a reader then sees.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from run_records import run_record
from volumes import visible_versions

from trainer.publish import publish

TOUCHES_DISK = {
    *(
        "open",
        "write",
        "flush",
        "fsync",
        "fchmod",
        "chmod",
        "close",
        "mkdir",
        "symlink",
        "rename",
        "replace",
    ),
    *("rmdir", "unlink"),
}
START = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def die_at(point: int, told: int) -> Callable[[FrameType, str, Any], None]:
    """A profile function: kills this process before the disk-touching call number `point` begins."""
    seen = 0

    def profile(frame: FrameType, event: str, call: Any) -> None:
        nonlocal seen
        if event == "c_call" and call.__name__ in TOUCHES_DISK:
            if seen == point:
                os.write(told, call.__name__.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    return profile


def publish_until(point: int, adapter: Path, report: Path, volume: Path) -> str:
    """Publish in a child that dies at `point`; the call it died at, "" if it lived to the end."""
    hears, told = os.pipe()
    child = os.fork()
    if child == 0:
        sys.setprofile(die_at(point, told))
        publish(adapter, run_record(), report, volume, now=START + timedelta(seconds=point))
        os._exit(0)
    os.close(told)
    with os.fdopen(hears) as pipe:
        died_at = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == bool(died_at)
    return died_at


def main() -> None:
    adapter, report, volume = map(Path, sys.argv[1:])
    home = volume / "smalltalk"
    # An earlier version, so that there is a link to lose from the first death on.
    publish(adapter, run_record(), report, volume, now=START - timedelta(seconds=1))
    died_at, point = "not yet", 0
    while died_at:
        died_at = publish_until(point, adapter, report, volume)
        latest = home / "latest"
        line = {
            "died_at": died_at,
            "versions": visible_versions(home),
            "latest": str(latest.readlink()) if latest.is_symlink() else None,
        }
        print(json.dumps(line), flush=True)  # noqa: T201
        point += 1


if __name__ == "__main__":
    main()
