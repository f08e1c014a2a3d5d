"""One thread that works off what it is given, and that the end of the process does not wait for.

concurrent.futures joins its threads at exit: a schema that the library never comes back from would keep the server
from ending.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Queue = SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]


class Worker:
    """The thread begins with the first work and ends with the object."""

    def __init__(self, name: str) -> None:
        self._queue: _Queue = SimpleQueue()
        self._thread = threading.Thread(target=_run, args=(self._queue,), name=name, daemon=True)
        self._lock = threading.Lock()
        weakref.finalize(self, self._queue.put, None).atexit = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Work that has not begun may be cancelled."""
        future: Future[T] = Future()
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()
        self._queue.put((work, future))
        return future


def _run(queue: _Queue) -> None:
    while (given := queue.get()) is not None:
        work, future = given
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
        del given, work, future  # kept, they would hold their caller until the next
