"""vLLM and our own server on the same base and the same published adapter, as two programs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e.conftest import NAME, LiveServer, live_server, volume

__all__ = ["volume"]  # a fixture, offered here too

CONTEXT = 512
START_SECONDS = 500  # it imports, compiles and warms up: about 70 s where nothing else runs

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # One thread, wherever the machine has room: bound to a core that is busy, its warm-up may take many minutes.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def compose_command(model: Path, volume: Path) -> list[str]:
    """The arguments of `vllm serve` in docker-compose.yml, with this model and this volume."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["vllm"]
    assert service["entrypoint"] == ["vllm", "serve"]
    values = {"LORACHAT_MODEL": str(model), "LORACHAT_RECIPE": NAME}
    return [
        re.sub(r"\$\{(\w+)[^}]*\}", lambda found: values[found[1]], word).replace(
            "/adapters/", f"{volume}/"
        )
        for word in service["command"]
    ]


@pytest.fixture(scope="session")
def ours(
    embedded_model: Path, volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Our server's address."""
    log = tmp_path_factory.mktemp("ours") / "server.log"
    with live_server(embedded_model, volume, log, "--max-context", str(CONTEXT)) as running:
        yield running.url


@pytest.fixture(scope="session")
def vllm(
    embedded_model: Path, volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """vLLM as the compose file's profile gpu-serve starts it, but for what a small CPU needs: those flags come last."""
    folder = tmp_path_factory.mktemp("vllm")
    python = Path(os.environ.get("LORACHAT_VLLM_PYTHON") or ROOT / ".venv-vllm/bin/python")
    if not python.exists():
        pytest.skip("vLLM is not installed: run `make test-vllm`, or scripts/setup-vllm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", "vllm.entrypoints.cli.main", "serve", *compose_command(embedded_model, volume),
             "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(CONTEXT),
             "--max-num-seqs", "4", "--enforce-eager", "--max-lora-rank", "16"],
            cwd=folder, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": str(folder / "cache")},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{url}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        yield LiveServer(url, log, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False
