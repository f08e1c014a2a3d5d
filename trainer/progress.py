"""Shows a run's progress: a bar on a terminal, plain lines elsewhere. It knows nothing about training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Bar(Protocol):
    """One thing that advances."""

    def advance(self, note: str = "", count: int = 1) -> None:
        """`count` more units are done; `note` replaces what is shown beside the bar."""


class Reporter(Protocol):
    """What a run tells while it goes on."""

    def say(self, line: str) -> None:
        """One line that stays."""

    def warn(self, line: str) -> None:
        """One line that stays and stands out."""

    def bar(self, label: str, total: int) -> Bar:
        """A bar of `total` units."""


class _SilentBar:
    def advance(self, note: str = "", count: int = 1) -> None:
        """Nothing is shown."""


class Silent:
    """Shows nothing."""

    def say(self, line: str) -> None:
        """Nothing is shown."""

    def warn(self, line: str) -> None:
        """Nothing is shown."""

    def bar(self, label: str, total: int) -> Bar:  # noqa: ARG002 (the interface's)
        """A bar that is not shown."""
        return _SilentBar()


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, note: str = "", count: int = 1) -> None:
        """Move the bar."""
        if note:
            self._progress.update(self._task, note=note)
        self._progress.advance(self._task, count)


class _PlainBar:
    """For logs: a line at each tenth."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console = console
        self._label = label
        self._total = total
        self._done = 0
        self._shown = 0
        self._note = ""

    def advance(self, note: str = "", count: int = 1) -> None:
        """Print a line if another tenth is done."""
        self._note = note or self._note
        self._done += count
        tenths = 10 * self._done // max(self._total, 1)
        if tenths > self._shown:
            self._shown = tenths
            self._console.print(f"{self._label} {self._done}/{self._total} {self._note}".rstrip())


class Terminal:
    """Shows progress on a console, for as long as it is entered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def say(self, line: str) -> None:
        """Print the line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False)

    def warn(self, line: str) -> None:
        """Print the line in yellow above the bars."""
        self._progress.console.print(
            f"Warning: {line}", style="yellow", markup=False, highlight=False
        )

    def bar(self, label: str, total: int) -> Bar:
        """A bar below the ones before; lines in a log."""
        if not self._console.is_terminal:
            return _PlainBar(self._console, label, total)
        return _RichBar(self._progress, self._progress.add_task(label, total=total, note=""))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Progress on standard error, so that standard output stays clean for results."""
    with Terminal(Console(stderr=True, soft_wrap=True)) as shown:
        yield shown
