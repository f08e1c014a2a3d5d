"""The bandwidth probe: how fast this machine reads memory now, so that figures of two moments can be compared.

Run as a program (`python -m benchmarks.probe THREADS`), so that no thread pool of its own stays in the client.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

ELEMENTS = 2**27  # 512 MiB of float32
REPEATS = 7


def bandwidth(threads: int) -> float:
    """GB/s (10^9 bytes), the median of summing 512 MiB of float32 seven times with so many threads."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.probe", str(threads)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(result.stdout)


def _measure(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    array = torch.ones(ELEMENTS)
    array.sum()
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        array.sum()
        seconds.append(time.perf_counter() - begun)
    return float(array.nbytes / median(seconds) / 1e9)


if __name__ == "__main__":
    print(f"{_measure(int(sys.argv[1])):.2f}")
