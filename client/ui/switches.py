"""Stop switches: which answers each open page is waiting for, and how to end them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

Place = tuple[str, str]  # a page's session, and the tab


class StopSwitches:
    """One switch for each place where an answer is being written. Belongs to one event loop.

    Gradio could cancel the answer's event instead, but then the note under the answer could not say
    that it was stopped.
    """

    def __init__(self) -> None:
        self._running: dict[Place, tuple[asyncio.Event, asyncio.Event]] = {}

    @contextmanager
    def running(self, place: Place) -> Iterator[asyncio.Event]:
        """While an answer is written: its switch, set as soon as somebody wants it to end."""
        switch, ended = self._running[place] = (asyncio.Event(), asyncio.Event())
        try:
            yield switch
        finally:
            ended.set()
            if self._running.get(place) == (switch, ended):
                del self._running[place]

    async def stop(self, place: Place) -> None:
        """End the answer at this place, if there is one; return once it has ended, or 2 s later.

        It is given up then: Gradio may hold the answer's generator without ever resuming it.
        """
        if place in self._running:
            switch, ended = self._running[place]
            switch.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 2.0)
