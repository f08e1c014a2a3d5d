"""Settings -> app -> uvicorn, until a signal: the server in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from server.api.app import create_app
from server.api.connection import connection_class
from server.api.drain import AdminAddress, DrainingServer
from server.api.policy import MAX_HEAD_BYTES
from server.api.service import Service
from server.door import policy_of, watch_keys
from server.errors import StartupError
from server.reporters import reporters_of
from server.settings import Settings

log = logging.getLogger("lorachat")


def serve(settings: Settings) -> int:
    """Run until stopped; the exit code. 1 if the model could not be loaded or the engine died. Raises StartupError."""
    # The library would cut every stream at SIGTERM; here running answers have drain_seconds to finish.
    AppStatus.enable_automatic_graceful_drain = False
    policy, key_file = policy_of(settings)
    service = Service(
        # More choices than ever fit would be told to come back, for ever.
        max_choices=min(settings.max_choices, settings.max_running + settings.max_waiting),
        keepalive_seconds=settings.keepalive_seconds,
        max_answer_tokens=settings.max_answer_tokens,
        keeps_content=settings.log_content,
    )
    reporters, tracing = reporters_of(settings)
    stopping = threading.Event()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loader = threading.Thread(
            target=_load_and_watch, args=(settings, service, stopping, stop_server), daemon=True
        )
        loader.start()
        if key_file is not None:
            threading.Thread(target=watch_keys, args=(key_file, stopping), daemon=True).start()
        yield
        stopping.set()
        if service.status != "loading":
            await asyncio.to_thread(loader.join)

    app = create_app(service, policy, lifespan=lifespan, reporters=reporters)

    def begin_drain() -> None:
        service.is_draining = True

    def end_drain() -> None:
        if service.status == "draining":
            service.engine.stop()  # its running requests get an error event

    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            http=connection_class(settings.stall_seconds),
            ws="none",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            # What is left after drain_seconds was told of its end; this is the time those last words take to go out.
            timeout_graceful_shutdown=5,
            server_header=False,
        ),
        settings.drain_seconds,
        begin_drain,
        end_drain,
        None
        if policy.admin_port is None
        else AdminAddress(settings.admin_host, settings.admin_port or 0, policy.admin_port),
    )

    def stop_server() -> None:
        server.should_exit = True

    # uvicorn raises the signal that stopped it once more at its end; a clean stop is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server.run()
    if tracing is not None:
        tracing.close()
    return 1 if service.failure is not None or server.has_failed else 0


def _load_and_watch(
    settings: Settings, service: Service, stopping: threading.Event, stop_server: Callable[[], None]
) -> None:
    """The loading thread: load, tell the service, then look at the adapters folder until the end."""
    # Here, so that the port answers while the engine's modules are imported.
    from server.loading import load_here

    try:
        loaded, refresh = load_here(settings)
    except StartupError as error:
        log.critical("%s", error)
        service.set_failed("The model could not be loaded.")
        stop_server()
        return
    except Exception:
        log.critical("loading failed", exc_info=True)
        service.set_failed("The model could not be loaded.")
        stop_server()
        return
    # What is here now stays. Out of the collector's sight, so that it need not be walked through, with all answers
    # waiting, whenever the remains of finished requests are collected.
    gc.collect()
    gc.freeze()
    service.set_loaded(loaded)
    while not stopping.wait(settings.adapter_poll_seconds):
        refresh()
        # Not all supervisors look at /health; all see an exit.
        if loaded.engine.failure is not None:
            log.critical("the engine cannot go on: %s", loaded.engine.failure)
            stop_server()
            return
    loaded.engine.stop()
