"""Trains over and over in child processes that are killed at random moments, until a run is complete.

`python train_and_die.py KILLS SEED OUTPUT VOLUME ARGUMENTS…`, where the arguments are those of `train`. Children are
forked, so that the heavy imports are paid for once. A quarter of the kills come after a random time; the others before
a random one of the calls that touch the disk while a checkpoint is saved, the run is concluded or a version published,
which is where a random time seldom falls. Prints, per child, a JSON line.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from publish_and_die import TOUCHES_DISK
from volumes import visible_versions

import trainer.fit  # with all that a child would import
import trainer.run  # noqa: F401
from trainer.__main__ import main as command

# The work at hand, by the file of this program that is on the stack.
PHASES = {"watch.py": "saving", "run.py": "concluding", "publish.py": "publishing"}


def phase_of(frame: FrameType | None) -> str | None:
    """publishing, saving or concluding; None while data and model are read."""
    seen = None
    while frame is not None:
        file = frame.f_code.co_filename
        name = PHASES.get(os.path.basename(file)) if f"{os.sep}trainer{os.sep}" in file else None
        if name == "publishing" or (name == "saving" and frame.f_code.co_name == "on_save"):
            return name
        if name == "concluding" and frame.f_code.co_name in ("_conclude", "_save"):
            seen = name
        frame = frame.f_back
    return seen


def watched(points: dict[str, int], told: int) -> Callable[[FrameType, str, Any], None]:
    """A profile function: kills this process before the call of a phase that has the number in `points`."""
    counts: dict[str, int] = {}

    def profile(frame: FrameType, event: str, call: Any) -> None:
        if event != "c_call" or call.__name__ not in TOUCHES_DISK:
            return
        if isinstance(
            getattr(call, "__self__", None), str | io.StringIO
        ):  # str.replace and the like
            return
        phase = phase_of(frame)
        if phase is None:
            return
        if points.get(phase) == counts.get(phase, 0):
            os.write(told, json.dumps({"phase": phase, "call": call.__name__}).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        counts[phase] = counts.get(phase, 0) + 1

    return profile


def child(arguments: list[str], log: Path, profile: Any = None) -> int:
    """Fork one that runs `train`; its process id."""
    process = os.fork()
    if process == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.setprofile(profile)
        code = 1
        with contextlib.suppress(BaseException):
            code = command(["train", *arguments])
        sys.setprofile(None)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(io.UnsupportedOperation, ValueError):
                stream.flush()
        os._exit(code)
    return process


def main() -> None:
    kills, seed = int(sys.argv[1]), int(sys.argv[2])
    output, volume, arguments = Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:]
    dice = random.Random(seed)
    begun = time.monotonic()  # how long a run takes
    again = [*arguments, "--output", str(output) + "-first", "--no-publish"]
    os.waitpid(child(again, output.with_suffix(".log")), 0)
    seconds = time.monotonic() - begun
    kinds = itertools.cycle(
        ("any", *PHASES.values())
    )  # as they come in a run: one leaves the next to be done
    done = 0
    while done < kills:
        target = output.with_name(f"{output.name}-{done}")
        volume_here = volume.with_name(f"{volume.name}-{done}")
        run = [
            *arguments,
            "--output",
            str(target),
            "--adapters",
            str(volume_here),
            "--name",
            "tiny",
        ]
        while True:
            hears, told = os.pipe()
            last = done >= kills
            if last:
                process = child(run, target.with_suffix(".log"))
            elif (kind := next(kinds)) == "any":
                process = child(run, target.with_suffix(".log"))
                time.sleep(dice.uniform(0.0, seconds))
                os.kill(
                    process, signal.SIGKILL
                )  # at worst of one that has ended and is not waited for yet
            else:
                point = {kind: dice.randrange(60)}
                process = child(run, target.with_suffix(".log"), watched(point, told))
            os.close(told)
            with os.fdopen(hears) as pipe:
                died = json.loads(pipe.read() or "{}")
            _, status = os.waitpid(process, 0)
            was_killed = os.WIFSIGNALED(status)
            done += was_killed
            line = {
                "killed": was_killed,
                "phase": died.get("phase", "any" if was_killed else None),
                "code": None if was_killed else os.WEXITSTATUS(status),
                "versions": visible_versions(volume_here / "tiny"),
                "output": str(target),
            }
            print(json.dumps(line), flush=True)  # noqa: T201
            if not was_killed:
                break


if __name__ == "__main__":
    main()
