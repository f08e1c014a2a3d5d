"""Watches the optimisation: collects its history, draws the validation curve, moves the bar, seals checkpoints, and
ends it early where that is wanted.

Imports transformers at its top, so import it only after a backend's `activate`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from trainer.checkpoints import seal
from trainer.config import Recipe
from trainer.interruption import StopRequest
from trainer.machine import MemoryMeter
from trainer.processes import is_main, process_count
from trainer.progress import Bar
from trainer.record import HistoryPoint

HISTORY = "history.json"  # in a checkpoint


class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """One per training. `resume` before it goes on from a checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        curve_loss: Callable[[], float],
        bar: Bar,
        stop: StopRequest,
        memory: MemoryMeter,
        steps_per_epoch: float,
    ) -> None:
        self._every = recipe.evaluation.eval_steps
        self._last = recipe.training.max_steps
        self._patience = recipe.training.early_stopping_patience
        self._curve_loss = curve_loss
        self._bar = bar
        self._stop = stop
        self._memory = memory
        self._steps_per_epoch = steps_per_epoch
        self._points: dict[int, dict[str, float]] = {}
        self._began = 0.0
        self._before = 0.0  # training seconds before the checkpoint that was resumed
        self._paused = 0.0  # seconds spent in evaluations and checkpoints
        self._rate = 0.0
        self._logged = (0.0, 0)  # training seconds and tokens at the last log
        self.train_seconds = 0.0
        self.on_best: Callable[[], None] | None = None
        self.log: Callable[[dict[str, float]], None] | None = None  # tells the experiment trackers
        self.stopped_early = False

    def resume(self, checkpoint: Path) -> None:
        """Go on with the history of a checkpoint. Raises OSError, ValueError."""
        kept = json.loads((checkpoint / HISTORY).read_bytes())
        self._points = {int(step): values for step, values in kept["points"].items()}
        self._before = self.train_seconds = kept["train_seconds"]
        self._logged = (kept["logged"][0], kept["logged"][1])
        self.stopped_early = kept["stopped_early"]
        self._bar.advance(count=max(self._points, default=0))

    def history(self) -> tuple[HistoryPoint, ...]:
        """One point per step that has anything to tell."""
        return tuple(
            HistoryPoint(step=step, **values) for step, values in sorted(self._points.items())
        )

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_kwargs: Any) -> None:
        """The curve's first point: the adapter is still without effect."""
        self._began = time.monotonic()
        if 0 not in self._points:
            self._evaluate(0)
            self._points[0]["seconds"] = 0.0
        self._began = time.monotonic()
        self._paused = 0.0

    def on_step_begin(self, _args: Any, _state: Any, _control: Any, **_kwargs: Any) -> None:
        """A step begins, accumulation included."""
        self._memory.begin_step()

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
        """The learning rate that this step will use."""
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        self._rate = float(rate)
        self._note(state.global_step + 1, learning_rate=self._rate)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """A step is done; evaluate if it is time, and stop if that is wanted."""
        self.train_seconds = self._before + time.monotonic() - self._began - self._paused
        held, allocated = self._memory.step()
        self._note(
            state.global_step, epoch=state.global_step / self._steps_per_epoch, memory_gb=held
        )
        if allocated is not None:
            self._note(state.global_step, allocated_gb=allocated)
        self._bar.advance()
        if state.global_step % self._every == 0 or state.global_step == self._last:
            self._evaluate(state.global_step)
            if self._patience is not None and self._evaluations_since_best() >= self._patience:
                self.stopped_early = control.should_training_stop = control.should_save = True
        if self._any_process_stopped():
            control.should_training_stop = control.should_save = True

    def on_save(self, args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        """All files of a checkpoint are written: add the history and seal it."""
        started = time.monotonic()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if process_count() > 1:
            distributed.barrier()  # each process writes a file of its own
        if is_main():
            kept = {
                "points": self._points,
                "train_seconds": self.train_seconds,
                "logged": self._logged,
                "stopped_early": self.stopped_early,
            }
            (checkpoint / HISTORY).write_text(json.dumps(kept), encoding="utf-8")
            seal(checkpoint)
        self._paused += time.monotonic() - started

    def on_log(
        self,
        _args: Any,
        state: Any,
        _control: Any,
        logs: dict[str, Any] | None = None,
        **_kwargs: Any,
    ) -> None:
        """The mean training loss since the last log, and the rate of real tokens."""
        if not logs or "loss" not in logs:
            return
        seconds, tokens = self._logged
        elapsed = self.train_seconds - seconds
        speed = (state.num_input_tokens_seen - tokens) / elapsed if elapsed > 0 else 0.0
        self._logged = (self.train_seconds, int(state.num_input_tokens_seen))
        self._note(state.global_step, train_loss=float(logs["loss"]), tokens_per_second=speed)
        if "grad_norm" in logs:
            self._note(state.global_step, grad_norm=float(logs["grad_norm"]))
        self._bar.advance(
            f"loss {float(logs['loss']):.3f}  lr {self._rate:.1e}  {speed:,.0f} tokens/s", count=0
        )

    def _any_process_stopped(self) -> bool:
        if process_count() == 1:
            return self._stop.requested
        # All must leave the loop at the same step, whichever was told.
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        told = torch.tensor(float(self._stop.requested), device=device)
        distributed.all_reduce(told)
        return bool(told > 0)

    def _evaluations(self) -> list[float]:
        return [
            point["eval_loss"] for _, point in sorted(self._points.items()) if "eval_loss" in point
        ]

    def _evaluations_since_best(self) -> int:
        losses = self._evaluations()
        return len(losses) - 1 - losses.index(min(losses))

    def _evaluate(self, step: int) -> None:
        started = time.monotonic()
        before = min(self._evaluations(), default=math.inf)
        loss = self._curve_loss()
        self._note(step, eval_loss=loss)
        if self.log is not None:
            self.log({"eval_loss": loss})
        if loss < before and self.on_best is not None:
            self.on_best()
        self._paused += time.monotonic() - started

    def _note(self, step: int, **values: float) -> None:
        point = self._points.setdefault(step, {"seconds": 0.0})
        point["seconds"] = self._before + time.monotonic() - self._began
        point.update(values)
