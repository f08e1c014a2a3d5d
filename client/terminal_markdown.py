"""Markdown on a terminal while it is still being written.

A paragraph, list or code block is printed for good once it is complete; only the block being written
is redrawn. So the text scrolls as any output does, and stays in the terminal's history once.
"""

from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner

from client.blocks import complete_blocks
from client.printable import printable


class MarkdownStream:
    """A context in which `feed` shows an answer; leaving it prints what is left."""

    def __init__(self, console: Console, waiting_for: str) -> None:
        self._console = console
        self._pending = ""
        self._has_printed = False
        self._live = Live(
            Spinner("dots", f"{waiting_for} …"),
            console=console,
            transient=True,
            refresh_per_second=12,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()
        self._print(self._pending)

    def feed(self, text: str) -> None:
        """Show more of the answer."""
        self._pending += printable(text)
        end = complete_blocks(self._pending)
        self._print(self._pending[:end])
        self._pending = self._pending[end:]
        self._live.update(_Tail(self._pending))

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if self._has_printed:
            self._console.print()
        self._console.print(Markdown(text))
        self._has_printed = True


class _Tail:
    """The last lines of a Markdown text, as many as fit the screen."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self._text), options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()
