"""A real server on a real socket, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from server.api.connection import connection_class
from server.api.places import Places
from server.api.policy import MAX_HEAD_BYTES


@contextmanager
def serve(app: FastAPI, stall_seconds: float = 30, places: Places | None = None) -> Iterator[str]:
    """The server's address while the block runs."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1,
        http=connection_class(stall_seconds, places), ws="none", h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )  # fmt: skip
    with run_in_thread(uvicorn.Server(config)) as url:
        yield url


@contextmanager
def run_in_thread(server: uvicorn.Server) -> Iterator[str]:
    """The address of its first port while the block runs."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
