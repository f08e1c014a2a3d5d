"""Forward and backward of a pass as one CUDA graph per shape: recorded once, then replayed by a single launch.

At a few thousand tokens a pass launches some 19,000 small kernels, which takes the processor longer than the GPU needs
to run them. A replay leaves the processor out. Knows tensors and a function; nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.packed.layout import Pass

WASTE = 0.06  # share of empty places that is taken rather than recording another shape

# (pass, what the sum of its losses is multiplied by) -> that sum; leaves the gradients in .grad, added to what is there
Step = Callable[[Pass, Tensor], Tensor]


class GraphedStep:
    """A Step that replays. The gradient buffers must be there before the first call and stay the same tensors."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._recorded: dict[tuple[int, int], _Recording] = {}
        self._pool: Any = None

    @property
    def shapes(self) -> int:
        """How many shapes were recorded."""
        return len(self._recorded)

    def near(self, tokens: int, segments: int) -> int | None:
        """A recorded size that `tokens` places fit into with little waste: recording another costs more."""
        sizes = [
            size
            for size, boundaries in self._recorded
            if boundaries == segments + 1 and tokens <= size <= tokens * (1 + WASTE)
        ]
        return min(sizes, default=None)

    def reserve(self, inputs: Pass, factor: Tensor) -> None:
        """Record the largest pass there will be, before any other. Raises RuntimeError where it cannot be recorded.

        Its memory then serves all smaller ones. A larger pass that comes later cannot use what smaller ones hold, since
        blocks do not grow: shapes in ascending order would add up.
        """
        self._recorded[inputs.tokens, inputs.boundaries.numel()] = self._record(inputs, factor)

    def __call__(self, inputs: Pass, factor: Tensor) -> Tensor:
        """Run the step. Raises RuntimeError where it cannot be recorded; the gradients are then not to be used."""
        key = (inputs.tokens, inputs.boundaries.numel())
        recording = self._recorded.get(key)
        if recording is None:
            recording = self._record(inputs, factor)
            self._recorded[key] = recording
        return recording.replay(inputs, factor)

    def _record(self, inputs: Pass, factor: Tensor) -> _Recording:
        recording = _Recording(inputs, factor)
        if not self._recorded:
            # Once outside a graph, so that libraries make their handles and choose their kernels. A factor of nought
            # leaves the gradients as they are.
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(recording.inputs, torch.zeros_like(factor))
            torch.cuda.current_stream().wait_stream(stream)
        recording.record(self._step, self._pool)
        self._pool = recording.graph.pool()  # replays never overlap, so all shapes share one memory
        return recording


class _Recording:
    def __init__(self, inputs: Pass, factor: Tensor) -> None:
        self.inputs = Pass(*(tensor.clone() for tensor in _tensors(inputs)))
        self.factor = factor.clone()
        self.graph = torch.cuda.CUDAGraph()
        self.loss = torch.zeros_like(factor)

    def record(self, step: Step, pool: Any) -> None:
        # thread_local: NCCL's watchdog asks for its events from a thread of its own.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.loss.copy_(step(self.inputs, self.factor))

    def replay(self, inputs: Pass, factor: Tensor) -> Tensor:
        for target, source in zip(_tensors(self.inputs), _tensors(inputs), strict=True):
            target.copy_(source, non_blocking=True)
        self.factor.copy_(factor)
        self.graph.replay()
        return self.loss.clone()


def _tensors(inputs: Pass) -> tuple[Tensor, ...]:
    return inputs.input_ids, inputs.position_ids, inputs.targets, inputs.boundaries
