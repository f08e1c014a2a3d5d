"""How much memory this process may use: a container's limit counts, not the machine."""

from __future__ import annotations

import os
from pathlib import Path

# cgroup v2, then v1. "max", or a number near 2^63, means that there is no limit.
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# Python, the tokenizer, the web server, activations of a step.
RESERVED_BYTES = 768 * 2**20
# Of what is left: cached prefixes fill whatever they are given, and the machine has other uses for memory.
KV_CACHE_SHARE = 0.5
# Whole contexts that the KV cache holds by default, where there is memory for them.
KV_CACHE_CONTEXTS = 8


def available_bytes(limits: tuple[Path, ...] = CGROUP_LIMITS) -> int:
    """The machine's memory, or the container's limit where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limits:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return total


def kv_cache_budget(memory: int, weight_bytes: int, enough: int) -> int:
    """Bytes for the KV cache: half of what the weights leave, and no more than `enough`. May be 0 or less."""
    return min(enough, int((memory - weight_bytes - RESERVED_BYTES) * KV_CACHE_SHARE))
