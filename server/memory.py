"""How much memory this process may use: a container's limit counts, not the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
# Python, the tokenizer, the web server, activations of a step.
RESERVED_BYTES = 768 * 2**20
# Of what is left: cached prefixes fill whatever they are given, and the machine has other uses for memory.
KV_CACHE_SHARE = 0.5
# Whole contexts that the KV cache holds by default, where there is memory for them.
KV_CACHE_CONTEXTS = 8


# Adapters come and go; those that are in use must have room beside the keys and values.
ADAPTER_SHARE = 0.25
# On a machine that the weights fill, a few adapters still fit into what is reserved.
LEAST_ADAPTER_BYTES = 128 * 2**20


def available_bytes(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """The machine's memory, or the least limit of the process's control group and of those above it.

    In a container the group is the root of what it sees; under systemd (MemoryMax=) it lies deeper.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _limits(root, own):
        try:
            # "max", or a number near 2^63, means that there is no limit.
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return total


def _limits(root: Path, own: Path) -> Iterator[Path]:
    """The files that may hold a limit, of cgroup v2 and v1. Not all need to exist."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", "0:memory:/", *lines]:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        folder, name = root, "memory.max"
        if "memory" in controllers.split(","):
            folder, name = root / "memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        own_folder = PurePosixPath(group.lstrip("/"))
        for above in (own_folder, *own_folder.parents):
            if ".." not in above.parts:  # a group outside of what the container sees
                yield folder / above / name


def kv_cache_budget(memory: int, weight_bytes: int, enough: int) -> int:
    """Bytes for the KV cache: half of what the weights leave, and no more than `enough`. May be 0 or less."""
    return min(enough, int((memory - weight_bytes - RESERVED_BYTES) * KV_CACHE_SHARE))


def adapter_budget(memory: int, weight_bytes: int) -> int:
    """Bytes for adapters: a quarter of what the weights leave, and some in any case."""
    return max(LEAST_ADAPTER_BYTES, int((memory - weight_bytes - RESERVED_BYTES) * ADAPTER_SHARE))
