"""What this machine can train with: its device, the compute type, its memory.

It knows nothing about recipes beyond the compute type asked for.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from trainer.errors import ConfigError
from trainer.processes import local_rank, process_count
from trainer.record import Memory

GB = 1e9
DType = Literal["bfloat16", "float16", "float32"]
# The capability from which tensor cores know bfloat16. torch.cuda.is_bf16_supported() is no guide: it counts emulation.
BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Machine:
    """The device to train on."""

    device: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] | None = None
    index: int = 0  # of the GPU

    @property
    def has_cuda(self) -> bool:
        """Whether there is a CUDA GPU that torch can use."""
        return self.device == "cuda"


def this_machine() -> Machine:
    """The first CUDA GPU that torch can use (of several processes each has its own), else the CPU."""
    if torch.cuda.is_available():
        index = local_rank() if process_count() > 1 else 0
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"Process {index} of this machine has no GPU: there are {torch.cuda.device_count()}. Start no more "
                "processes than GPUs."
            )
        torch.cuda.set_device(index)
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        return Machine("cuda", name, capability, index)
    return Machine("cpu", f"CPU ({torch.get_num_threads()} threads)")


def compute_dtype(asked: str, machine: Machine) -> DType:
    """The compute type for `model.dtype`. Raises ConfigError where the device does not have it."""
    if not machine.has_cuda:
        if asked == "float16":
            raise ConfigError(
                "model.dtype: float16 needs a CUDA GPU; on a CPU use auto or float32."
            )
        return "bfloat16" if asked == "bfloat16" else "float32"
    has_bfloat16 = machine.capability is not None and machine.capability >= BFLOAT16_CAPABILITY
    if asked == "bfloat16" and not has_bfloat16:
        raise ConfigError(
            f"model.dtype: bfloat16 is not in the hardware of {machine.name}; use auto or float16."
        )
    if asked == "bfloat16" or (asked == "auto" and has_bfloat16):
        return "bfloat16"
    return "float32" if asked == "float32" else "float16"


def free_memory(machine: Machine) -> None:
    """Give the device memory of objects that nobody holds any more back to the system."""
    gc.collect()
    if machine.has_cuda:
        torch.cuda.empty_cache()


# How libraries say it that do not raise torch's own error: CUDA calls outside its allocator (a recorded graph's
# instantiation, a kernel's code), Triton, NCCL; cuBLAS making its handle; torch's allocator on a CPU.
_LACKS_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


def lacks_memory(error: BaseException) -> bool:
    """Whether a lack of memory is behind an error, itself or anywhere in what it came from.

    A failed recording of a CUDA graph hides it: ending the recording raises an error of its own.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (torch.cuda.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(link, RuntimeError) and any(words in str(link) for words in _LACKS_MEMORY):
            return True
        link = link.__cause__ or link.__context__
    return False


class MemoryMeter:
    """Peak memory of a run. On CUDA what the allocator reserved, on a CPU the resident set of the process."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._start = 0.0
        self._highest = 0.0  # before the last reset
        if machine.has_cuda:
            torch.cuda.reset_peak_memory_stats()

    def mark_start(self) -> None:
        """Call when model and adapter are loaded and no step has run."""
        self._start = self._now()

    def read(self) -> Memory:
        """The figures so far."""
        # The kernel brings the peak up to date less often than the present figure.
        peak = max(self._peak(), self._start)
        return Memory(self._machine.name, peak, self._start, self._total())

    def begin_step(self) -> None:
        """Call before a step: what an evaluation took is not the step's."""
        if self._machine.has_cuda:
            self._highest = max(self._highest, self._peak())
            torch.cuda.reset_peak_memory_stats()

    def step(self) -> tuple[float, float | None]:
        """GB of the step since `begin_step`: reserved and held by tensors at its peak (CUDA); resident now (CPU)."""
        if self._machine.has_cuda:
            return torch.cuda.max_memory_reserved() / GB, torch.cuda.max_memory_allocated() / GB
        return self._now(), None

    def _now(self) -> float:
        if self._machine.has_cuda:
            return torch.cuda.memory_reserved() / GB
        try:
            resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        except OSError:  # not Linux
            return self._peak()
        return resident_pages * os.sysconf("SC_PAGE_SIZE") / GB

    def _peak(self) -> float:
        if self._machine.has_cuda:
            return max(self._highest, torch.cuda.max_memory_reserved() / GB)
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB

    def _total(self) -> float:
        if self._machine.has_cuda:
            return torch.cuda.get_device_properties().total_memory / GB
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            try:
                total = min(total, int(Path(limit).read_text()))
            except (OSError, ValueError):  # no such file, or "max"
                continue
        return total / GB
