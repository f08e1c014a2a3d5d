"""An answer being written, watched through snapshots.

Knows the client's events, and not who shows them.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from client.api import ChatClient
from client.errors import ChatError
from client.figures import figures
from client.types import ChatRequest, Delta, Done

# A redraw costs the browser more than a token costs the wire, so this is the most often.
_REDRAW_SECONDS = 0.06
# And at least this often, so that a long wait is seen to go on, and a page that was closed is noticed.
_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A snapshot: it has ended when `done` (complete) or `error` (failed) is set.

    `seconds` is the time since the question, while it runs and at its end.
    """

    model: str
    text: str = ""
    seconds: float = 0.0
    done: Done | None = None
    error: ChatError | None = None

    @property
    def has_ended(self) -> bool:
        return self.done is not None or self.error is not None

    @property
    def note(self) -> list[str]:
        """Short phrases for the line under the answer; none for a failure, which is told in full."""
        if self.error is not None:
            return []
        if self.done is not None:
            return [self.done.model, *figures(self.done)]
        state = "writing" if self.text else "waiting for the first token"
        return [self.model, f"{state}, {self.seconds:.0f} s"]


async def watch(client: ChatClient, request: ChatRequest) -> AsyncGenerator[Answer]:
    """Ask, and give snapshots until the answer has ended; the last one is complete.

    Closing the generator or cancelling its reader closes the connection to the server, which then
    stops computing. A failure is part of the snapshots.
    """
    started = time.perf_counter()
    answer = Answer(request.model)
    changed = asyncio.Event()

    async def write() -> None:
        nonlocal answer
        try:
            async with aclosing(client.stream(request)) as events:
                async for event in events:
                    match event:
                        case Delta(text):
                            answer = replace(answer, text=answer.text + text)
                        case Done():
                            answer = replace(answer, done=event)
                    changed.set()
        except ChatError as error:
            answer = replace(answer, error=error)
        finally:
            changed.set()

    writer = asyncio.create_task(write())
    try:
        while not writer.done():
            yield replace(answer, seconds=time.perf_counter() - started)
            await asyncio.sleep(_REDRAW_SECONDS)
            try:
                await asyncio.wait_for(changed.wait(), _HEARTBEAT_SECONDS)
            except TimeoutError:
                continue
            changed.clear()
        await writer
    finally:
        writer.cancel()
        # Not gather: it hands each further cancellation on, and Starlette's cancel scope sends them until
        # its task is gone. They would tear the writer out of closing its connection.
        await asyncio.wait([writer])
    yield replace(answer, seconds=time.perf_counter() - started)
