"""Starts the three programs as a user would, by their command lines, and ends what it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx

from demo.errors import DemoError

ROOT = Path(__file__).resolve().parent.parent


def run(arguments: Sequence[str]) -> None:
    """`python -m …` to its end, with this terminal. Raises DemoError if it fails."""
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=False)
    if result.returncode:
        raise DemoError(
            f"`python -m {arguments[0]}` ended with code {result.returncode}; its own message is above."
        )


def free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1 if nobody listens there, else a free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError("No free port on 127.0.0.1.")


class Program:
    """A program in the background, its output in a log file. Ended on leaving the `with` block."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.name = arguments[0]
        self._arguments = [sys.executable, "-m", *arguments]
        self._log = log

    def __enter__(self) -> Program:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            # Its own group: Ctrl-C reaches this process only, which then ends the others in order.
            self._process = subprocess.Popen(
                self._arguments,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def wait_until_up(self, url: str, seconds: float) -> None:
        """Until GET url gives 200. Raises DemoError with the end of the log if it does not come up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise DemoError(
                    f"{self.name} ended at once. The end of {self._log}:\n{self._tail()}"
                )
            try:
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise DemoError(
            f"{self.name} was not up after {seconds:.0f} s. The end of {self._log}:\n{self._tail()}"
        )

    def check(self) -> None:
        """Raises DemoError if it has ended."""
        if self._process.poll() is not None:
            raise DemoError(f"{self.name} has ended. The end of {self._log}:\n{self._tail()}")

    def _tail(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-15:])
