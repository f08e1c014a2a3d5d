"""`make soak`: a real server at twice what it holds, with callers that leave, dawdle and send rubbish, and a volume
whose versions are published, removed and corrupted all the while.

Prints every request by outcome (finished + refused + cancelled = sent), wrong answers (each is compared with the same
request alone), tokens per second, memory at start and end, and what is left held. Ends with 1 if anything is wrong,
lost or leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.machine import this_machine
from benchmarks.process import free_port
from tests.soak.asks import Ask, References, ask_alone, make_asks
from tests.soak.callers import Callers
from tests.soak.report import Evidence, findings, write_report
from tests.soak.volume import Volume
from tests.soak.watch import Watch, open_files

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 1.0
RUNNING, WAITING = 8, 8
KEYS = {name: f"sk-soak-{name}-0123456789abcdef0123456789abcdef" for name in ("ann", "ben", "cat")}
ADMIN_KEY = "sk-soak-admin-0123456789abcdef0123456789abcdef"
# Of nine adapters about four fit into memory.
ADAPTER_GIB = 0.085


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends too
    folder = ROOT / "runs" / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    chance = random.Random(options.seed)
    print(f"soak: seed {options.seed}, {options.seconds} s, {options.model.name}", flush=True)
    from trainer.weights import weights_digest

    volume = Volume(folder, options.model, weights_digest(options.model), chance)
    volume.publish_all()
    asks = make_asks(options.asks, options.seed)
    with server(options.model, volume.live, folder / "server.log") as (url, process):
        watch = Watch(url, process.pid, ADMIN_KEY)
        operator = {"authorization": f"Bearer {ADMIN_KEY}"}
        kernel = kernel_of(watch.numbers())
        print(f"soak: kernel {kernel}", flush=True)
        if kernel == "torch":
            print(
                "soak: with torch an answer is not the same bits in any company; `make native` compiles the decoder"
            )
            return 2
        with httpx.Client(base_url=url, timeout=300, headers=operator) as http:
            begun = time.monotonic()
            references = ask_alone(http, pairs(volume, asks))
            print(f"soak: {len(references)} answers alone in {time.monotonic() - begun:.0f} s")
            evidence = soak(watch, volume, asks, references, http, options)
            volume.publish_all()
            restore(http, volume.versions)
            again = ask_alone(http, pairs(volume, asks[:2]))
            evidence.recovered = all(again[key] == references[key] for key in again)
            evidence.open_files = evidence.open_files[0], open_files(process.pid)
        process.send_signal(signal.SIGTERM)
        evidence.exit_code = process.wait(60)
    evidence.tracebacks = (folder / "server.log").read_text(errors="replace").count("Traceback")
    write_report(evidence, this_machine())
    found = findings(evidence, memory_growth=options.memory_growth)
    for finding in found[:20]:
        print(f"soak: {finding}")
    print("soak: nothing wrong, lost or leaked" if not found else f"soak: {len(found)} findings")
    return 1 if found else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=int, default=1200, help="of load; default 1200")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--asks", type=int, default=24, help="different requests; default 24")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/smollm2-135m-instruct")
    parser.add_argument(
        "--memory-growth",
        type=float,
        default=0.02,
        help="growth of memory that is no leak, as a part; default 0.02",
    )
    return parser.parse_args()


def pairs(volume: Volume, asks: list[Ask]) -> list[tuple[str, Ask]]:
    return [(model, ask) for model in ("base", *volume.versions) for ask in asks]


def soak(
    watch: Watch,
    volume: Volume,
    asks: list[Ask],
    references: References,
    http: httpx.Client,
    options: argparse.Namespace,
) -> Evidence:
    """http: the operator's."""

    def operate(version: str, action: str) -> None:
        answer = http.post(f"/admin/adapters/{version}/{action}")
        assert answer.status_code in (200, 400, 404, 409, 429, 503), answer.text

    names = ["base", *volume.versions, *sorted({key.split("@")[0] for key in volume.versions})]
    callers = Callers(watch.url, asks, references, names, list(KEYS.values()), options.seed)
    before, files = watch.numbers(), open_files(watch.pid)
    ended = threading.Event()
    threads = [
        threading.Thread(target=volume.disturb, args=(ended, 2.0, operate)),
        threading.Thread(target=watch.run, args=(ended,)),
    ]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    try:
        asyncio.run(callers.run(2 * (RUNNING + WAITING), options.seconds))
    finally:
        seconds = time.monotonic() - begun
        ended.set()
        for thread in threads:
            thread.join()
    return Evidence(
        tally=callers.tally,
        deeds=volume.done,
        seconds=seconds,
        before=before,
        after=watch.wait_until_idle(),
        memory=watch.tenths(),
        open_files=(files, 0),
    )


def kernel_of(numbers: dict[str, float]) -> str:
    """What the server computes with."""
    (series,) = (name for name in numbers if name.startswith("lorachat_engine_info"))
    match = re.search(r'kernel="([^"]*)"', series)
    assert match is not None, series
    return match[1]


def restore(http: httpx.Client, versions: list[str]) -> None:
    """Take back what the operator did; asserts that the server lists every version within a few polls."""
    for name in sorted({version.split("@")[0] for version in versions}):
        http.post(f"/admin/adapters/{name}/unpin")
        http.post(f"/admin/adapters/{name}/reload")
    deadline = time.monotonic() + 60
    while True:
        served = {model["id"] for model in http.get("/v1/models").json()["data"]}
        missing = set(versions) - served
        if not missing:
            return
        assert time.monotonic() < deadline, f"not served again: {sorted(missing)}"
        time.sleep(POLL_SECONDS / 2)


@contextmanager
def server(model: Path, volume: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address and its process, ready; what is still alive at the end is ended."""
    port = free_port()
    command = [
        sys.executable, "-m", "server", "--model", str(model), "--adapters", str(volume), "--port", str(port),
        "--max-running", str(RUNNING), "--max-waiting", str(WAITING), "--max-context", "1024",
        # Little, so that sequences lose their place to others.
        "--kv-cache-gib", "0.06", "--adapter-memory-gib", str(ADAPTER_GIB), "--adapter-poll-seconds", str(POLL_SECONDS),
    ]  # fmt: skip
    secrets = {"LORACHAT_API_KEYS": ",".join(KEYS.values()), "LORACHAT_ADMIN_KEY": ADMIN_KEY}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **secrets},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not is_ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
