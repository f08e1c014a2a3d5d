"""Two answers side by side in a terminal, while they are being written."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from client.answers import Answer, watch
from client.api import ChatClient
from client.printable import printable
from client.types import ChatRequest


async def show_side_by_side(
    console: Console, client: ChatClient, requests: Sequence[ChatRequest]
) -> None:
    """Ask all at once, and show them in columns; a failure stays in its column."""
    answers = [Answer(request.model) for request in requests]

    async def follow(index: int, live: Live) -> None:
        async with aclosing(watch(client, requests[index])) as snapshots:
            async for snapshot in snapshots:
                answers[index] = snapshot
                live.update(_columns(answers))

    # Live cuts what is taller than the screen; what is printed for good afterwards is whole.
    with Live(_columns(answers), console=console, transient=True, refresh_per_second=10) as live:
        await asyncio.gather(*(follow(index, live) for index in range(len(requests))))
    console.print(_columns(answers))


def _columns(answers: Sequence[Answer]) -> RenderableType:
    table = Table(expand=True)
    for answer in answers:
        table.add_column(answer.model, ratio=1)
    table.add_row(*(_cell(answer) for answer in answers))
    return table


def _cell(answer: Answer) -> RenderableType:
    if answer.error is not None:
        note = Text(printable(str(answer.error)), style="red")
    else:
        note = Text(printable(" · ".join(answer.note)), style="dim")
    return Group(Markdown(printable(answer.text)), note)
