"""Starts a server, waits for its first token, watches its memory, ends it. Linux only: it reads /proc."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.client import Target, ask, open_client

ROOT = Path(__file__).resolve().parent.parent


class ServerError(Exception):
    """The server did not come up, or has ended. The message has the end of its log."""


def exit_on_sigterm() -> None:
    """Make SIGTERM an exception, so that the servers a program has started end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server with all its child processes; ended on leaving the `with` block.

    first_token_seconds: from its start to the first token of an answer.
    peak_bytes: the sum over its processes of their largest resident size (VmHWM); pages that processes share are
    counted once for each of them.
    """

    def __init__(
        self, command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.url = url
        self.first_token_seconds: float | None = None
        self._command = list(command)
        self._log = log
        self._environment = environment
        self._peaks: dict[int, int] = {}
        self._ended = threading.Event()

    def __enter__(self) -> ServerProcess:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._begun = time.perf_counter()
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._watcher.join()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)  # the session it leads: its children too
            except ProcessLookupError:
                break
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                continue

    def wait_for_first_token(self, target: Target, seconds: float) -> float:
        """Asks until an answer comes; seconds from the start to its first token.

        Raises ServerError if the process ends or does not answer in time.
        """
        self.first_token_seconds = asyncio.run(self._first_token(target, seconds))
        return self.first_token_seconds

    async def _first_token(self, target: Target, seconds: float) -> float:
        deadline = time.monotonic() + seconds
        async with open_client(self.url) as client:
            while True:
                sample = await ask(client, target, [{"role": "user", "content": "Hello!"}], 16)
                if sample.error is None:
                    return sample.recording.text_times[0] - self._begun
                if self._process.poll() is not None:
                    raise ServerError(f"it ended. The end of {self._log}:\n{self._tail()}")
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"no answer within {seconds:.0f} s (last: {sample.error})."
                        f" The end of {self._log}:\n{self._tail()}"
                    )
                await asyncio.sleep(0.05)

    def cpu_seconds(self) -> float:
        """Processor time that its living processes have used, with that of the ended ones they waited for."""
        return sum(_cpu_seconds(pid) for pid in _tree(self._process.pid))

    @property
    def peak_bytes(self) -> int:
        self._look()
        return sum(self._peaks.values())

    def _watch(self) -> None:
        while not self._ended.wait(2.0):  # processes that end early take their peak with them
            self._look()

    def _look(self) -> None:
        for pid in _tree(self._process.pid):
            peak = _peak_bytes(pid)
            if peak is not None:
                self._peaks[pid] = peak

    def _tail(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-15:])


def _tree(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        try:
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it ended while we looked
            continue
    return found


def _cpu_seconds(pid: int) -> float:
    try:
        # Behind the name, which may hold spaces: state is field 3, utime … cstime are fields 14 to 17.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_seconds() -> float:
    """Processor time that the whole machine has spent on anything, the hypervisor's other guests (steal) included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _peak_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None  # a zombie has none
