"""Settings -> model -> engine -> app -> uvicorn. The only file that sees all layers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import CliApp

from server.errors import StartupError
from server.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.api.service import Loaded, Service

Kind = TypeVar("Kind", bound=Settings)

log = logging.getLogger("lorachat")


def main() -> None:
    if sys.argv[1:2] == ["key"]:
        sys.exit(_make_key(sys.argv[2:]))
    if sys.argv[1:2] == ["ray"]:
        sys.exit(_serve_with_ray(sys.argv[2:]))
    settings = _read_settings(Settings)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Nothing is fetched because of a request; the base may be, once, at start, when it is a hub id.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(_serve(settings))
    except StartupError as error:
        _exit(str(error))


def _make_key(arguments: list[str]) -> int:
    """`python -m server key NAME`: the key on stderr, its table for the key file on stdout."""
    import argparse
    import re

    from server.api.key_file import NAME
    from server.api.new_key import make_key

    parser = argparse.ArgumentParser(
        prog="python -m server key",
        description="Makes an API key and shows it once, on the error output. Standard output is its table for the key"
        " file, which holds only a digest of it: append it (`python -m server key phone >>keys.toml`).",
    )
    parser.add_argument("name", help="of the key's holder: letters, digits, '.', '_', '-'")
    parser.add_argument("--admin", action="store_true", help="it opens the admin routes too")
    options = parser.parse_args(arguments)
    if not re.fullmatch(NAME, options.name):
        parser.error("a name is 1 to 64 letters, digits, '.', '_' and '-'")
    made = make_key(options.name, is_admin=options.admin)
    print(f"The key of {options.name}, shown this once: {made.key}", file=sys.stderr)
    print(made.table, end="")
    return 0


def _read_settings(kind: type[Kind], arguments: list[str] | None = None) -> Kind:
    try:
        return CliApp.run(kind, cli_args=arguments)
    except ValidationError as error:
        for detail in error.errors():
            if not detail["loc"]:  # of several settings together
                _exit(f"{detail['msg'].removeprefix('Value error, ')}.")
            name = str(detail["loc"][0])
            flag, variable = f"--{name.replace('_', '-')}", f"LORACHAT_{name.upper()}"
            if detail["type"] == "missing":
                _exit(f"{flag} (or {variable}) is required: a hub id, a folder or a GGUF file."
                      " `make model` prepares a small one and prints its folder.")  # fmt: skip
            given = "" if name in ("api_keys", "admin_key") else f" (got {detail['input']!r})"
            _exit(f"{flag} (or {variable}): {detail['msg']}{given}.")
        raise


def _serve_with_ray(arguments: list[str]) -> int:
    """`python -m server ray …`: the same server in several processes, on one machine or many."""
    from server.ray_serve.settings import RaySettings

    settings = _read_settings(RaySettings, arguments)
    # Before Ray is imported. It reports usage to its makers unless told not to; here nothing leaves the machine.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if settings.ray_address is None:
        # Its ports listen on the machine's address, whatever --host says: who comes without its token is refused.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        from server.ray_serve.run import run
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        _exit(
            "Ray is not installed here. `make ray` makes an environment with it; by hand:"
            " pip install -c requirements/constraints-ray.txt -r requirements/ray.txt"
        )
    try:
        return run(settings)
    except StartupError as error:
        _exit(str(error))


def _exit(message: str) -> NoReturn:
    print(f"server: {message}", file=sys.stderr)
    sys.exit(2)


def _serve(settings: Settings) -> int:
    """Run until stopped; the exit code. 1 if the model could not be loaded or the engine died."""
    import uvicorn
    from sse_starlette.sse import AppStatus

    from server.api.app import create_app
    from server.api.connection import connection_class
    from server.api.drain import AdminAddress, DrainingServer
    from server.api.policy import MAX_HEAD_BYTES
    from server.api.service import Service
    from server.door import policy_of, watch_keys

    # The library would cut every stream at SIGTERM; here running answers have drain_seconds to finish.
    AppStatus.enable_automatic_graceful_drain = False
    policy, key_file = policy_of(settings)
    service = Service(
        # More choices than ever fit would be told to come back, for ever.
        max_choices=min(settings.max_choices, settings.max_running + settings.max_waiting),
        keepalive_seconds=settings.keepalive_seconds,
        max_answer_tokens=settings.max_answer_tokens,
    )
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

    app = create_app(service, policy, lifespan=lifespan)

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
    return 1 if service.failure is not None or server.has_failed else 0


def _load_and_watch(
    settings: Settings, service: Service, stopping: threading.Event, stop_server: Callable[[], None]
) -> None:
    """The loading thread: load, tell the service, then look at the adapters folder until the end."""
    try:
        loaded, refresh = _load(settings)
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
    service.set_loaded(loaded)
    while not stopping.wait(settings.adapter_poll_seconds):
        refresh()
        # Not all supervisors look at /health; all see an exit.
        if loaded.engine.failure is not None:
            log.critical("the engine cannot go on: %s", loaded.engine.failure)
            stop_server()
            return
    loaded.engine.stop()


def _load(settings: Settings) -> tuple[Loaded, Callable[[], None]]:
    from server.cores import available_cores
    from server.loading import load
    from server.memory import available_bytes

    return load(settings, settings.threads or available_cores(), available_bytes())


if __name__ == "__main__":
    main()
