"""`python -m server doctor`: looks at all that a server needs before it serves, and says what is wrong and what to do.

Runs with the settings of the server. Nothing is changed, but for the digest of the base, which is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.cores import available_cores
from server.errors import ServerError
from server.memory import available_bytes
from server.model.digest_cache import cached_weights_digest
from server.model.loader import BaseModel, load_base
from server.operate import host, model_checks
from server.operate.bandwidth import read_bandwidth
from server.operate.finding import Finding, fail

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Examined:
    """What is to be examined: the server's settings, and how it would make of them a cache and a catalogue.

    refusal: why a server would not start with these keys. cache_budget, adapter_budget: bytes of the KV cache and for
    adapters, beside weights of so many bytes. least_cache_tokens: with less it does not start. open_volume: a
    catalogue that has not looked at the volume yet; it is given the base's digest.
    """

    model: str
    base_id: str | None
    adapters: Path | None
    host: str
    port: int
    admin: tuple[str, int] | None
    has_keys: bool
    refusal: str | None
    threads: int | None
    max_context: int | None
    kernel: str
    cache: Path
    cache_budget: Callable[[BaseModel, int], int]
    adapter_budget: Callable[[int], int]
    least_cache_tokens: int
    open_volume: Callable[[BaseModel, str], model_checks.Volume]


def examine(what: Examined) -> Iterator[Finding]:
    """Every check, in the order in which a start would fail."""
    yield from host.check_clock()
    yield from host.check_cores(what.threads)
    yield from host.check_files()
    yield from host.check_port("port", what.host, what.port)
    if what.admin is not None:
        yield from host.check_port("admin port", *what.admin)
    yield from host.check_access(what.host, has_keys=what.has_keys, refusal=what.refusal)
    yield from host.check_disk(what.cache, what.adapters)
    yield from model_checks.check_kernel(what.kernel)
    threads = what.threads or available_cores()
    bandwidth = read_bandwidth(threads)
    try:
        base = load_base(what.model, what.max_context, what.base_id)
    except ServerError as error:
        yield fail("model", str(error), "nothing can be served without one")
        return
    digest: list[str] = []

    def read_digest() -> str:
        digest.append(cached_weights_digest(base.checkpoint, threads, what.cache))
        return digest[0]

    yield from model_checks.check_base(base, read_digest)
    if digest:
        yield from model_checks.check_adapters(what.open_volume(base, digest[0]), what.adapters)
    else:
        return
    weights = model_checks.expected_weight_bytes(base, what.kernel)
    yield from model_checks.check_memory(
        base,
        weight_bytes=weights,
        cache_bytes=what.cache_budget(base, weights),
        adapter_bytes=adapter_bytes(what.adapters),
        adapter_budget=what.adapter_budget(weights),
        least_tokens=min(what.least_cache_tokens, base.max_context),
        limit=available_bytes(),
        free=free_bytes(),
    )
    yield from model_checks.check_bandwidth(
        bandwidth, model_checks.bytes_per_token(base, weights), threads
    )


def adapter_bytes(volume: Path | None) -> int:
    """Of all weights on the volume; served ones take about as much memory."""
    if volume is None or not volume.is_dir():
        return 0
    files = volume.glob("[!.]*/[!.]*/*.safetensors")
    return sum(file.stat().st_size for file in files if file.parent.name != "latest")


def free_bytes(meminfo: Path = MEMINFO) -> int | None:
    """What programs could still be given without swapping; None where the kernel does not say."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
