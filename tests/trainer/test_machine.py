"""What a machine can train with: the compute type, the backend, the environment of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.backends.select import cpu_recipes, select_backend
from trainer.errors import ConfigError
from trainer.machine import Machine, MemoryMeter, compute_dtype, lacks_memory, this_machine
from trainer.recipe_file import load_recipe

CPU = Machine("cpu", "CPU")
T4 = Machine("cuda", "Tesla T4", (7, 5))
A100 = Machine("cuda", "A100", (8, 0))
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("asked", "machine", "given"),
    [
        ("auto", CPU, "float32"),
        ("auto", T4, "float16"),
        ("auto", A100, "bfloat16"),
        ("float32", A100, "float32"),
        ("float16", A100, "float16"),
        ("bfloat16", A100, "bfloat16"),
    ],
)
def test_compute_type(asked: str, machine: Machine, given: str) -> None:
    assert compute_dtype(asked, machine) == given


@pytest.mark.parametrize(("asked", "machine"), [("bfloat16", T4), ("float16", CPU)])
def test_a_type_the_device_does_not_have_is_refused(asked: str, machine: Machine) -> None:
    with pytest.raises(ConfigError, match=rf"model\.dtype: {asked}.*use auto"):
        compute_dtype(asked, machine)


@pytest.mark.parametrize(
    ("machine", "installed", "wanted", "backend"),
    [
        (A100, {"unsloth", "bitsandbytes"}, "auto", "unsloth"),
        (A100, {"bitsandbytes"}, "auto", "peft"),
        (A100, {"unsloth", "bitsandbytes"}, "peft", "peft"),
        (A100, set(), "unsloth", "unsloth is not installed"),
        (A100, set(), "peft", "needs the package bitsandbytes"),
        (CPU, {"unsloth"}, "auto", "needs a CUDA GPU"),
    ],
)
def test_backend_choice(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    installed: set[str],
    wanted: str,
    backend: str,
) -> None:
    monkeypatch.setattr(
        "trainer.backends.select.find_spec", lambda name: name if name in installed else None
    )
    recipe = load_recipe("llama-3.2-3b", [f"training.backend={wanted}"])
    if backend in ("unsloth", "peft"):
        assert select_backend(recipe, machine).name == backend
    else:
        with pytest.raises(ConfigError, match=backend):
            select_backend(recipe, machine)


def test_the_demo_recipe_runs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.backends.select.find_spec", lambda _: None)
    assert select_backend(load_recipe("smollm2-cpu-demo"), CPU).name == "peft"
    assert cpu_recipes() == ["smollm2-cpu-demo"]


def test_memory_is_measured_and_plausible() -> None:
    meter = MemoryMeter(CPU)
    meter.mark_start()
    memory = meter.read()
    assert 0.05 < memory.start_reserved_gb <= memory.peak_reserved_gb < memory.total_gb
    assert memory.device == "CPU"


class Allocator:
    """What torch.cuda tells of its memory, in bytes, with peaks that can be reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserved = self.allocated = self.reserved_peak = self.allocated_peak = 0
        for name, told in {
            "max_memory_reserved": lambda: self.reserved_peak,
            "max_memory_allocated": lambda: self.allocated_peak,
            "memory_reserved": lambda: self.reserved,
            "reset_peak_memory_stats": self.reset,
            "get_device_properties": lambda: SimpleNamespace(total_memory=16e9),
        }.items():
            monkeypatch.setattr(f"torch.cuda.{name}", told)

    def reset(self) -> None:
        self.reserved_peak, self.allocated_peak = self.reserved, self.allocated

    def take(self, reserved: float, allocated: float) -> None:
        """A peak, after which the reserved memory stays and the tensors go."""
        self.reserved = int(reserved * 1e9)
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        self.allocated_peak = max(self.allocated_peak, int(allocated * 1e9))


def test_a_steps_memory_is_its_own_and_the_runs_peak_is_that_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocator = Allocator(monkeypatch)
    meter = MemoryMeter(Machine("cuda", "Tesla T4", (7, 5)))
    allocator.take(9, 8)  # an evaluation
    meter.begin_step()
    allocator.take(9, 4)
    assert meter.step() == (9, 4)
    allocator.take(9, 7)  # another
    allocator.reserved = int(5e9)  # given back
    meter.begin_step()
    allocator.take(6, 5)
    assert meter.step() == (6, 5)
    assert meter.read().peak_reserved_gb == 9


def raised(error: BaseException, behind: BaseException | None = None) -> BaseException:
    try:
        try:
            raise behind or error
        finally:
            raise error
    except BaseException as caught:
        return caught


TRITON = "Triton Error [CUDA]: out of memory"
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
RECORDING = "CUDA error: operation failed due to a previous error during capture"


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.cuda.OutOfMemoryError("Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError(TRITON), True),
        (RuntimeError(CUBLAS), True),
        (raised(RuntimeError(RECORDING), torch.cuda.OutOfMemoryError("…")), True),
        (RuntimeError(RECORDING), False),
        (raised(RuntimeError(RECORDING), ValueError("out of memory")), False),
    ],
)
def test_a_lack_of_memory_is_known_by_any_name(error: BaseException, is_memory: bool) -> None:
    assert lacks_memory(error) == is_memory


def test_this_machine_is_a_cpu_or_a_known_gpu() -> None:
    machine = this_machine()
    assert machine.has_cuda == (machine.capability is not None)


def environment_after(code: str, **variables: str) -> dict[str, str]:
    names = (
        "HF_HUB_DISABLE_TELEMETRY",
        "UNSLOTH_DISABLE_STATISTICS",
        "HF_HUB_OFFLINE",
        "CUDA_VISIBLE_DEVICES",
    )
    program = f"import os\nfrom trainer.environment import prepare_environment\n{code}\n"
    program += f"for name in {names!r}: print(name, os.environ.get(name, '-'))"
    clean: dict[str, Any] = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def test_telemetry_is_off_and_the_hub_too_if_nothing_is_on_it() -> None:
    local = environment_after("prepare_environment(needs_hub=False)")
    assert local == {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    remote = environment_after("prepare_environment(needs_hub=True)", CUDA_VISIBLE_DEVICES="2")
    assert remote["HF_HUB_OFFLINE"] == "-"
    assert remote["CUDA_VISIBLE_DEVICES"] == "2"
