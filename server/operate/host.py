"""Checks of the machine: cores, disk, port, keys, clock, open files. They know nothing of the model."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from server.cores import CPU_MAX, available_cores
from server.operate.finding import Finding, fail, gib, ok, warn

CPU_STAT = Path("/sys/fs/cgroup/cpu.stat")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# The software is of 2026; a clock before that has lost its time.
EPOCH = 1767225600.0  # 2026-01-01T00:00:00Z
MANY_THROTTLED = 0.05  # of the scheduler's periods
LOW_DISK, NO_DISK = 2**30, 64 * 2**20
FEW_FILES = 1024  # two per stream, and the adapters'


def check_cores(
    threads: int | None, cpu_max: Path = CPU_MAX, cpu_stat: Path = CPU_STAT
) -> Iterator[Finding]:
    """threads: the setting; None takes the cores there are."""
    cores = available_cores(cpu_max)
    used = threads or cores
    quota = _quota(cpu_max)
    limit = f"{quota:g} of a container's quota" if quota else f"{cores} cores"
    if used > (quota or cores):
        yield warn(
            "threads",
            f"{used} threads, and {limit}: they will wait for each other",
            f"set --threads {max(1, int(quota or cores))}"
            + (", or give the container whole cores" if quota and quota != int(quota) else ""),
        )
    else:
        yield ok("threads", f"{used} threads, {limit}")
    throttled = _throttled(cpu_stat)
    if throttled is not None and throttled > MANY_THROTTLED:
        yield warn(
            "throttling",
            f"the container was held back in {throttled:.0%} of its scheduling periods so far",
            "raise its CPU limit, or set --threads to it",
        )
    load = os.getloadavg()[0]
    if load > 0.5 * cores:
        yield warn(
            "load",
            f"other programs use the cores: load {load:.1f} on {cores}",
            "give the server a machine, or cores, of its own",
        )
    else:
        yield ok("load", f"{load:.1f} on {cores} cores")


def check_disk(cache: Path, adapters: Path | None) -> Iterator[Finding]:
    """cache: where digests are kept. adapters: the volume; the server only reads it."""
    where = _existing(cache)
    if cache == Path(os.devnull) or not os.access(where, os.W_OK | os.X_OK):
        yield warn(
            "cache",
            f"{cache} cannot be written",
            "set LORACHAT_CACHE to a folder that can: else the base is hashed at every start",
        )
    else:
        yield ok("cache", f"{cache}, {gib(shutil.disk_usage(where).free)} free")
    for name, folder in (("disk of the cache", where), ("disk of the adapters", adapters)):
        if folder is None or not folder.is_dir():
            continue
        free = shutil.disk_usage(folder).free
        if free < NO_DISK:
            yield fail(name, f"{gib(free)} free at {folder}", "make room: nothing can be written")
        elif free < LOW_DISK:
            yield warn(name, f"{gib(free)} free at {folder}", "make room before it is full")


def check_port(name: str, host: str, port: int) -> Iterator[Finding]:
    """Whether the server could listen there. name: of the finding."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        yield fail(
            name,
            f"{host}:{port} cannot be listened on: {error.strerror or error}",
            "end what listens there (if it is this very server, all is well), or take another address",
        )
    else:
        yield ok(name, f"{host}:{port} is free")


def check_access(host: str, *, has_keys: bool, refusal: str | None = None) -> Iterator[Finding]:
    """Who could reach it. refusal: why a server would not start with these keys."""
    if refusal is not None:
        yield fail("access", refusal, "mend the keys: the server does not start like this")
    elif host not in LOOPBACK and not has_keys:
        yield warn(
            "access",
            f"{host} is reached from other machines, and no API key is asked for",
            "set API keys, or --host 127.0.0.1",
        )
    else:
        yield ok("access", "API keys are asked for" if has_keys else "this machine only")


def check_clock(now: float | None = None) -> Iterator[Finding]:
    now = time.time() if now is None else now
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < EPOCH:
        yield warn(
            "clock",
            f"it says {shown}, which cannot be",
            "set it (NTP): logs, metrics and the dates in prompts depend on it",
        )
    else:
        yield ok("clock", shown)


def check_files(limit: int | None = None) -> Iterator[Finding]:
    """limit: of open files; the highest that the process may set itself, as the server does, by default."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if limit is None else limit
    if limit != resource.RLIM_INFINITY and limit < FEW_FILES:
        yield warn(
            "open files",
            f"at most {limit}",
            f"raise the limit to {FEW_FILES} or more (ulimit -Hn, LimitNOFILE=)",
        )
    else:
        yield ok("open files", "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit}")


def _quota(cpu_max: Path) -> float | None:
    """Cores that the container may use, as a fraction; None without a limit."""
    try:
        quota, period = cpu_max.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _throttled(cpu_stat: Path) -> float | None:
    try:
        counts = dict(line.split() for line in cpu_stat.read_text().splitlines())
        periods = int(counts["nr_periods"])
        return int(counts["nr_throttled"]) / periods if periods else None
    except (OSError, ValueError, KeyError):
        return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
