"""The real program is ended, by SIGTERM, twice, and by SIGKILL under load, and started again."""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from server.api.keys import digest_of
from tests.conftest import ROOT

CHAT = "/v1/chat/completions"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    model: Path, port: int, log: Path, *flags: str, **environment: str
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "server", "--model", str(model), "--port", str(port), "--threads", "1",
             *flags],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment},
        )  # fmt: skip


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)


@contextmanager
def running(model: Path, log: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    process = start(model, port, log, *flags)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", log)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)


def body(text: str = "Tell me a long story", **fields: Any) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": text}], **fields}


def greedy(url: str) -> str:
    asked = body("The same question", temperature=0, max_tokens=20)
    answer = httpx.post(f"{url}{CHAT}", json=asked, timeout=60)
    return str(answer.json()["choices"][0]["message"]["content"])


def load_it(url: str, seed: int) -> None:
    """Streams until the server is gone."""
    chance = random.Random(seed)
    while True:
        asked = body(
            "x" * chance.randrange(1, 200), stream=True, max_tokens=chance.randrange(1, 200)
        )
        try:
            with httpx.stream("POST", f"{url}{CHAT}", json=asked, timeout=10) as response:
                for _ in response.iter_raw():
                    pass
        except httpx.HTTPError:
            return


def test_killed_under_load_it_starts_again_at_once_and_answers_the_same(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Same port, same volume, same caches; killed while it loads, and while it serves."""
    port, log = free_port(), tmp_path / "server.log"
    url, cache = f"http://127.0.0.1:{port}", tmp_path / "cache"
    flags = ("--adapters", str(tmp_path / "adapters"), "--max-running", "4")
    chance = random.Random(5)
    answers = []
    for turn in range(6):
        process = start(tiny_model, port, log, *flags, LORACHAT_CACHE=str(cache))
        try:
            if turn in (1, 3):
                time.sleep(chance.uniform(0.1, 2))  # somewhere in the middle of its start
            else:
                wait_until_ready(process, url, log)
                answers.append(greedy(url))
                with concurrent.futures.ThreadPoolExecutor(6) as pool:
                    streams = [pool.submit(load_it, url, seed) for seed in range(6)]
                    time.sleep(chance.uniform(0.2, 1))
                    process.kill()
                    for stream in streams:
                        stream.result(30)
        finally:
            process.kill()
            assert process.wait(20) == -signal.SIGKILL, log.read_text()
        for entry in cache.rglob("*.json"):
            if turn == 2:
                entry.write_bytes(entry.read_bytes()[:20])  # as a disk without order might leave it
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert "Traceback" not in log.read_text()


def test_it_drains_telling_callers_and_balancers_and_finishes_what_it_began(
    embedded_model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    asked = body(stream=True, max_tokens=120, ignore_eos=True)
    with running(embedded_model, log, "--drain-seconds", "60") as (process, url):
        with httpx.stream("POST", f"{url}{CHAT}", json=asked, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            while httpx.get(f"{url}/ready").status_code == 200:
                assert time.monotonic() < deadline
            assert httpx.get(f"{url}/ready").json() == {"status": "draining"}
            assert httpx.get(f"{url}/health").status_code == 200
            refused = httpx.post(f"{url}{CHAT}", json=body())
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0
        assert "Traceback" not in log.read_text()


def test_a_second_signal_ends_it_though_answers_run(embedded_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    asked = body(stream=True, max_tokens=8000, ignore_eos=True)
    with running(embedded_model, log, "--drain-seconds", "3600") as (process, url):
        client = httpx.Client(base_url=url, timeout=60)
        with client, client.stream("POST", CHAT, json=asked) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            while httpx.get(f"{url}/ready").status_code == 200:
                assert time.monotonic() < deadline, "the first signal is not heeded"
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            rest: list[str] = []
            with suppress(httpx.HTTPError):  # cut, or told in time
                rest += [line for line in lines if line]
            assert rest[-1:] != ["data: [DONE]"] or "error" in rest[-2]


def test_keys_and_the_admin_port_of_the_real_program(tiny_model: Path, tmp_path: Path) -> None:
    log, keys, admin = tmp_path / "server.log", tmp_path / "keys.toml", free_port()
    made = subprocess.run(
        [sys.executable, "-m", "server", "key", "phone"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    key = made.stderr.split()[-1]
    keys.write_text(made.stdout)
    flags = ("--api-key-file", str(keys), "--admin-port", str(admin), "--adapters", str(tmp_path))
    with running(tiny_model, log, *flags) as (process, url):
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        assert (
            httpx.post(f"{url}{CHAT}", json=body(max_tokens=3), headers=headers).status_code == 200
        )
        assert httpx.get(f"http://127.0.0.1:{admin}/metrics").status_code == 200
        assert httpx.get(f"http://127.0.0.1:{admin}/v1/models", headers=headers).status_code == 404
        keys.write_text("")
        deadline = time.monotonic() + 20
        while httpx.get(f"{url}/v1/models", headers=headers).status_code != 401:
            assert time.monotonic() < deadline, "revoked, and still valid"
            time.sleep(0.1)
        process.terminate()
        assert process.wait(30) == 0
    assert key not in log.read_text()
    assert digest_of(key).hex() not in log.read_text()
