"""uvicorn with a deadline for the answers that still run after SIGTERM or Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType

import uvicorn


class DrainingServer(uvicorn.Server):
    """Calls end_drain drain_seconds after the signal, from another thread: time for what is left to be told.

    uvicorn's own deadline would cut those connections in the middle of a chunk.
    """

    def __init__(
        self, config: uvicorn.Config, drain_seconds: float, end_drain: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._end_drain = end_drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        deadline = threading.Timer(self._drain_seconds, self._end_drain)
        deadline.daemon = True
        deadline.start()
        super().handle_exit(sig, frame)
