"""`make fuzz`: a real server with a tiny random model, against generated and against broken requests.

Two parts, both bounded: schemathesis sends what the server's own OpenAPI document allows and a little beyond; then
mutated bodies and raw bytes go over plain sockets. A finding is a status 5xx, one that is not documented, an answer
that its schema does not allow, or a server that is not well afterwards.

Environment: FUZZ_EXAMPLES (generated requests per operation), FUZZ_SECONDS (for generated requests, at most),
FUZZ_RAW (raw requests), FUZZ_SEED.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.fuzz.raw import fuzz_bodies, fuzz_sockets
from tests.models import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends too
    environment = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv-fuzz").absolute()
    examples = int(os.environ.get("FUZZ_EXAMPLES", "200"))
    raw = int(os.environ.get("FUZZ_RAW", "4000"))
    seed = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().randrange(10**6)
    print(f"fuzz: seed {seed} (repeat with FUZZ_SEED={seed})", flush=True)
    with server() as url:
        code = schemathesis(environment / "bin" / "schemathesis", url, examples, seed)
        findings = fuzz_bodies(url, raw, seed) + fuzz_sockets(url, raw // 4, seed)
        for finding in findings[:20]:
            print(f"fuzz: {finding}")
        print(f"fuzz: {raw + raw // 4} raw requests, {len(findings)} findings")
        is_fine = is_well(url)
    return 0 if code == 0 and not findings and is_fine else 1


def schemathesis(program: Path, url: str, examples: int, seed: int) -> int:
    command = [
        str(program), "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", str(examples),
        "--seed", str(seed), "--phases", "examples,coverage,fuzzing", "--mode", "all", "--no-color",
        "--request-timeout", "60", "--continue-on-failure", "--max-time", os.environ.get("FUZZ_SECONDS", "600"),
        "--generation-database", "none", "--suppress-health-check", "all",
    ]  # fmt: skip
    return subprocess.run(command, check=False, cwd=ROOT / "runs").returncode


def is_well(url: str) -> bool:
    """Whether it answers, and has nothing left to do for requests that are gone."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        metrics = httpx.get(f"{url}/metrics", timeout=30).text
        if (
            'vllm:num_requests_running{engine="0",model_name="base"} 0.0' in metrics
            and 'vllm:num_requests_waiting{engine="0",model_name="base"} 0.0' in metrics
        ):
            break
        time.sleep(0.2)
    else:
        print("fuzz: the engine still computes for requests that are gone")
        return False
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    if answer.status_code != 200:
        print(f"fuzz: afterwards a plain request is answered with {answer.status_code}")
    return answer.status_code == 200


@contextmanager
def server() -> Iterator[str]:
    """The address of a server with a tiny model, for as long as the block runs."""
    folder = ROOT / "runs" / "fuzz-model"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tiny_model(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = ROOT / "runs" / "fuzz-server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "--model", str(folder), "--port", str(port), "--max-context", "96",
             "--threads", "1", "--max-body-bytes", "65536"],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
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
        yield url
        assert process.poll() is None, "the server died: " + log.read_text()[-4000:]
        tracebacks = log.read_text(errors="replace").count("Traceback")
        assert tracebacks == 0, f"{tracebacks} tracebacks in {log}"
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
