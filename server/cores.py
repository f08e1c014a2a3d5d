"""How many cores this process may really use: a container's share of the machine counts, not the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_MAX = Path(
    "/sys/fs/cgroup/cpu.max"
)  # cgroup v2: "quota period" in microseconds, or "max period"


def available_cores(cpu_max: Path = CPU_MAX) -> int:
    """At least 1: the cores the process may run on, at most its container's quota, rounded up."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = cpu_max.read_text().split()
        allowed = min(allowed, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        pass
    return max(1, allowed)
