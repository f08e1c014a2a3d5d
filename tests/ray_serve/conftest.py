"""One cluster for all of these tests: engines with the embedded model, one core each; at first one, soon two."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.conftest import ROOT

KEY, OTHER_KEY, LIMITED_KEY, ADMIN_KEY = "sk-first", "sk-second", "sk-limited", "sk-admin"
TOKENS_PER_MINUTE = 200
KEY_FILE = f"""
[[key]]
name = "limited"
sha256 = "{hashlib.sha256(LIMITED_KEY.encode()).hexdigest()}"
models = ["base"]
tokens_per_minute = {TOKENS_PER_MINUTE}
"""
MAX_RUNNING, MAX_WAITING, MAX_BODY = 4, 2, 65536
# On a busy machine an answer of 300 tokens takes longer than the default leaves it.
DRAIN_SECONDS = 180
PYTHON = ROOT / os.environ.get("LORACHAT_RAY_ENV", ".venv-ray") / "bin" / "python"
REPLICA = "x-lorachat-replica"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("LORACHAT_RAY_ENV"):
        return
    for item in items:
        if "ray_serve" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="needs Ray: make test-ray"))


@dataclass
class Cluster:
    """url: where Ray Serve's proxy listens. volume: the adapters folder that all engines look at."""

    url: str
    volume: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"x-api-key": KEY}, timeout=60)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        given = {"x-api-key": KEY, **headers}
        return httpx.post(f"{self.url}{path}", json=body, headers=given, timeout=120)

    def metric(self, name: str) -> dict[str, float]:
        """A series of /metrics by replica, summed over its other labels."""
        found: dict[str, float] = {}
        pattern = rf'^{re.escape(name)}\{{.*?replica="([^"]*)".*?\}} (\S+)$'
        for replica, value in re.findall(pattern, self.get("/metrics").text, re.MULTILINE):
            found[replica] = found.get(replica, 0.0) + float(value)
        return found

    @property
    def engines(self) -> set[str]:
        """The engines that answer now."""
        return set(self.metric("lorachat_steps_total"))

    def engine_pids(self) -> list[int]:
        processes = psutil.Process(self.process.pid).children(recursive=True)
        return [p.pid for p in processes if "lorachat:Engine" in " ".join(p.cmdline())]

    def gcs_address(self) -> str:
        """Where Ray itself is reached: read off the arguments of its processes."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            for word in process.cmdline():
                if word.startswith("--gcs-address="):
                    return word.partition("=")[2]
        raise AssertionError("no raylet")


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    volume = folder / "adapters"
    volume.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    keys = folder / "keys.toml"
    keys.write_text(KEY_FILE)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(PYTHON), "-m", "server", "ray", "--model", str(embedded_model), "--port", str(port),
             "--adapters", str(volume), "--adapter-poll-seconds", "1", "--max-context", "1024",
             "--replicas", "1", "--max-replicas", "2", "--target-ongoing", "1", "--upscale-delay", "0",
             "--threads", "1", "--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING),
             "--max-body-bytes", str(MAX_BODY), "--drain-seconds", str(DRAIN_SECONDS),
             "--api-keys", f"{KEY},{OTHER_KEY}", "--api-key-file", str(keys)],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_COLOR_PREFIX": "0", "LORACHAT_ADMIN_KEY": ADMIN_KEY},
        )  # fmt: skip
    running = Cluster(f"http://127.0.0.1:{port}", volume, log, process)
    try:
        until(lambda: is_ready(running), 180, "not ready")
        yield running
    finally:
        # Ray ends its own processes with the one that started it.
        if process.poll() is None:
            process.terminate()
        assert process.wait(120) == 0, log.read_text()[-8000:]


def is_ready(cluster: Cluster) -> bool:
    assert cluster.process.poll() is None, cluster.log.read_text()[-8000:]
    return httpx.get(f"{cluster.url}/ready", timeout=10).status_code == 200
