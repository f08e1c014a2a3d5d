"""Times the steps of any transformers Trainer, and looks into one of them with the profiler."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback


@dataclass
class Steps:
    """What was seen. seconds and tokens: one entry per step."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    profile: dict[str, float] = field(default_factory=dict)


class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Waits for the GPU at both ends of a step. The step `profiled` (from 1) is looked into, not timed."""

    def __init__(self, profiled: int) -> None:
        self.steps = Steps()
        self._profiled = profiled
        self.first_ended = 0.0
        self._began = 0.0
        self._seen = 0
        self._profiler: Any = None

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Start the watch."""
        _wait()
        if state.global_step + 1 == self._profiled and torch.cuda.is_available():
            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            )
            self._profiler.__enter__()
        self._began = time.perf_counter()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Stop it."""
        _wait()
        elapsed = time.perf_counter() - self._began
        self.first_ended = self.first_ended or time.perf_counter()
        tokens = int(state.num_input_tokens_seen) - self._seen
        self._seen = int(state.num_input_tokens_seen)
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            self.steps.profile = _busy(self._profiler, elapsed) | {"tokens": tokens}
            self._profiler = None
            return
        self.steps.seconds.append(elapsed)
        self.steps.tokens.append(tokens)

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Keep the losses."""
        if logs and "loss" in logs:
            self.steps.losses.append(float(logs["loss"]))


def _busy(profiler: Any, wall: float) -> dict[str, float]:
    """Kernels of the step, and the seconds the GPU spent in them."""
    count, busy = 0, 0.0
    groups: dict[str, float] = {}
    for event in profiler.profiler.kineto_results.events():
        if event.device_type().name == "CUDA":
            seconds = event.duration_ns() / 1e9
            count, busy = count + 1, busy + seconds
            groups[_group(event.name())] = groups.get(_group(event.name()), 0.0) + seconds
    shares = {f"share_{name}": value / busy for name, value in groups.items()} if busy else {}
    return {"kernels": count, "gpu_busy_seconds": busy, "wall_seconds": wall, **shares}


def _group(name: str) -> str:
    lower = name.lower()
    if any(word in lower for word in ("gemm", "nvjet", "cutlass", "xmma", "wgmma")):
        return "attention" if "flash" in lower or "fmha" in lower else "matrix"
    if "flash" in lower or "fmha" in lower:
        return "attention"
    if "dequant" in lower:
        return "dequantise"
    if "memcpy" in lower or "memset" in lower:
        return "copy"
    return "elementwise"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
