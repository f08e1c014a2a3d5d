"""What machine a measurement was made on, without its name."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Machine:
    """memory_gib: physical memory. flags: the vector instructions that decide how fast a model can be computed."""

    cpu: str
    cores: int
    memory_gib: float
    flags: tuple[str, ...]
    system: str
    python: str


def this_machine() -> Machine:
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/cpuinfo").read_text().split("\n\n", maxsplit=1)[0].splitlines()
    )
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    model = (
        f" (family {fields['cpu family']}, model {fields['model']})" if "model" in fields else ""
    )
    return Machine(
        cpu=fields.get("model name", platform.machine()) + model,
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        system=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
    )
