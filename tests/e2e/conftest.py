"""The whole path with the real programs: train, publish, serve; by their command lines only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT

NAME = "smalltalk"


def python(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def volume(embedded_model: Path, once: Callable[..., Path]) -> Path:
    """A volume with an adapter that the trainer trained on the embedded model: the demo's recipe, cut short."""

    def build(folder: Path) -> None:
        from demo.data import prepare

        files = prepare(folder / "cache")
        settings = {
            "model.base": embedded_model,
            "data.sources.0.location": files.help_desk,
            "data.sources.1.location": files.small_talk,
            "data.sources.1.samples": 160,
            "training.max_steps": 6,
            "training.warmup_steps": 1,
            "evaluation.eval_steps": 6,
            "evaluation.curve_rows": 4,
            "answers.max_new_tokens": 4,
        }
        overrides = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        result = python(
            "trainer",
            "train",
            "--recipe",
            "smollm2-cpu-demo",
            *overrides,
            "--output",
            str(folder / "run"),
            "--adapters",
            str(folder / "adapters"),
            "--name",
            NAME,
            timeout=600,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    return once("e2e-volume", build) / "adapters"


@dataclass
class LiveServer:
    url: str
    log: Path
    pid: int


@contextmanager
def live_server(
    model: Path, volume: Path, log: Path, *flags: str, port: int | None = None
) -> Iterator[LiveServer]:
    """port: None for a free one."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "--model", str(model), "--adapters", str(volume),
             "--port", str(port), "--threads", "1", "--adapter-poll-seconds", "0.2", *flags],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield LiveServer(url, log, process.pid)
    finally:
        process.terminate()
        assert process.wait(40) == 0, log.read_text()


@pytest.fixture(scope="module")
def server(
    embedded_model: Path, volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    with live_server(embedded_model, volume, log) as running:
        yield running
