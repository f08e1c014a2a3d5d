"""How fast this machine reads memory: what the tokens per second of a CPU end at.

Each step reads all weights once, so one stream can have no more tokens per second than bandwidth / bytes of weights.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ELEMENTS = 2**27  # 512 MiB of int32 in all: more than any cache holds


def read_bandwidth(threads: int, seconds: float = 1.0, elements: int = ELEMENTS) -> float:
    """Bytes per second: the best pass of those that `seconds` allow, each thread reading a part of its own."""
    parts = np.array_split(np.zeros(elements, np.int32), threads)
    for part in parts:
        part[:] = 1  # pages that were never written are all the same one
    with ThreadPoolExecutor(threads) as pool:
        # The reduction that comes nearest to the memory's speed with any of numpy's kernels; it frees the interpreter.
        def read() -> float:
            begun = time.perf_counter()
            list(pool.map(np.max, parts))
            return time.perf_counter() - begun

        read()
        best, end = read(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, read())
    return 4 * elements / best
