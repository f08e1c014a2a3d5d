"""A request on its way, as its caller sees it: events come out of the engine's thread into an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from server.types import Event, Failed, Finished, GenerationRequest

log = logging.getLogger("lorachat.engine")


class Generation:
    """Iterate over its events, or cancel it. Belongs to the event loop it is made on."""

    def __init__(self, request: GenerationRequest, cancel: Callable[[], None]) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self._cancel = cancel
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._open_choices = request.n
        # time.perf_counter() of its first step; None while it waits. Set by the engine's thread.
        self.begun: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the last event has been taken."""
        return self._open_choices == 0

    async def next_event(self) -> Event:
        """The next event. Every choice ends in one Finished, or the whole request in one Failed."""
        event = await self._events.get()
        if isinstance(event, Finished):
            self._open_choices -= 1
        elif isinstance(event, Failed):
            self._open_choices = 0
        return event

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self.is_finished:
            yield await self.next_event()

    def cancel(self) -> None:
        """Stop computing. Safe at any time, any number of times, also after the end."""
        self._cancel()

    def put(self, event: Event) -> None:
        """For the engine: one more event. On the generation's own loop."""
        self._events.put_nowait(event)


def deliver(loop: asyncio.AbstractEventLoop, events: list[tuple[Generation, Event]]) -> None:
    """Put events from another thread, all in one call into their loop."""

    def put_all() -> None:
        for generation, event in events:
            generation.put(event)

    try:
        loop.call_soon_threadsafe(put_all)
    except RuntimeError:  # that loop has closed: nobody is left to read
        log.debug("events for a closed event loop were dropped")
