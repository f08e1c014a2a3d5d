"""Watches the optimisation: collects its history, draws the validation curve, moves the bar.

Imports transformers at its top, so import it only after a backend's `activate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from trainer.config import Recipe
from trainer.progress import Bar
from trainer.record import HistoryPoint


class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Collects the history, draws the validation curve and moves the bar."""

    def __init__(self, recipe: Recipe, curve_loss: Callable[[], float], bar: Bar) -> None:
        self._every = recipe.evaluation.eval_steps
        self._last = recipe.training.max_steps
        self._curve_loss = curve_loss
        self._bar = bar
        self._points: dict[int, dict[str, float]] = {}
        self._began = 0.0
        self._paused = 0.0  # seconds spent in evaluations
        self._rate = 0.0
        self._logged = (0.0, 0)  # training seconds and tokens at the last log
        self.train_seconds = 0.0

    def history(self) -> tuple[HistoryPoint, ...]:
        """One point per step that has anything to tell."""
        return tuple(
            HistoryPoint(step=step, **values) for step, values in sorted(self._points.items())
        )

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_kwargs: Any) -> None:
        """The curve's first point: the adapter is still without effect."""
        self._began = time.monotonic()
        self._evaluate(0)
        self._began = time.monotonic()
        self._paused = 0.0
        self._points[0]["seconds"] = 0.0

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
        """The learning rate that this step will use."""
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        self._rate = float(rate)
        self._note(state.global_step + 1, learning_rate=self._rate)

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        """A step is done; evaluate if it is time."""
        self.train_seconds = time.monotonic() - self._began - self._paused
        self._note(state.global_step, epoch=float(state.epoch or 0.0))
        self._bar.advance()
        if state.global_step % self._every == 0 or state.global_step == self._last:
            self._evaluate(state.global_step)

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

    def _evaluate(self, step: int) -> None:
        started = time.monotonic()
        self._note(step, eval_loss=self._curve_loss())
        self._paused += time.monotonic() - started

    def _note(self, step: int, **values: float) -> None:
        point = self._points.setdefault(step, {"seconds": 0.0})
        point["seconds"] = time.monotonic() - self._began
        point.update(values)
