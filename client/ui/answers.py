"""Answers being written: one or several at once, watched through snapshots.

Knows the client's events but neither Gradio nor HTML.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from client.api import ChatClient
from client.errors import ChatError
from client.types import ChatRequest, Delta, Done

# The page is redrawn at most this often: a redraw costs the browser more than a token costs the wire.
_REDRAW_SECONDS = 0.06
# And at least this often, so that a long wait is seen to go on. Gradio also finds out that the page
# was closed only when something is sent to it.
_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A snapshot of one answer.

    It has ended when `done` (complete), `error` (failed) or `is_stopped` (by the reader) is set.
    `seconds` is the time since the question, while it runs and at its end.
    """

    model: str
    text: str = ""
    seconds: float = 0.0
    done: Done | None = None
    error: ChatError | None = None
    is_stopped: bool = False

    @property
    def has_ended(self) -> bool:
        return self.done is not None or self.error is not None or self.is_stopped


async def watch(
    client: ChatClient, requests: Sequence[ChatRequest], stop: asyncio.Event
) -> AsyncGenerator[list[Answer]]:
    """Ask all requests at once; give snapshots, in the order of the requests, until all have ended.

    Setting `stop`, closing the generator or cancelling its reader closes the connections. Failures
    are part of the snapshots and stop only their own answer.
    """
    started = time.perf_counter()
    answers = [Answer(request.model) for request in requests]
    changed = asyncio.Event()

    async def write(index: int) -> None:
        try:
            async with aclosing(client.stream(requests[index])) as events:
                async for event in events:
                    match event:
                        case Delta(text):
                            answers[index] = replace(
                                answers[index], text=answers[index].text + text
                            )
                        case Done():
                            answers[index] = replace(answers[index], done=event)
                    changed.set()
        except ChatError as error:
            answers[index] = replace(answers[index], error=error)
        finally:
            answers[index] = replace(answers[index], seconds=time.perf_counter() - started)
            changed.set()

    def snapshot() -> list[Answer]:
        elapsed = time.perf_counter() - started
        return [a if a.has_ended else replace(a, seconds=elapsed) for a in answers]

    writers = [asyncio.create_task(write(index)) for index in range(len(requests))]
    stopper = asyncio.create_task(stop.wait())
    try:
        while not all(answer.has_ended for answer in answers) and not stop.is_set():
            yield snapshot()
            await asyncio.sleep(_REDRAW_SECONDS)
            waiter = asyncio.create_task(changed.wait())
            await asyncio.wait(
                {waiter, stopper},
                timeout=_HEARTBEAT_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiter.cancel()
            changed.clear()
    finally:
        for task in (*writers, stopper):
            task.cancel()
        results = await asyncio.gather(*writers, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    for index, answer in enumerate(answers):
        if not answer.has_ended:
            answers[index] = replace(answer, is_stopped=True)
    yield snapshot()
