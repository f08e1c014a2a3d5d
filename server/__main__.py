"""Settings -> model -> engine -> app -> uvicorn. The only file that sees all layers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError
from pydantic_settings import CliApp

from server.errors import StartupError
from server.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.api.service import Loaded, Service

log = logging.getLogger("lorachat")

# A step of so many rows costs hardly more than one of a single row: the weights are read once for all of them.
DRAFT_TOKENS = 8


def main() -> None:
    if sys.argv[1:2] == ["size"]:
        from server.sizing.command import main as size

        sys.exit(size(sys.argv[2:]))
    settings = _read_settings()
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Nothing is fetched because of a request; the base may be, once, at start, when it is a hub id.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.api_keys:
        log.warning(
            "listening on %s without an API key: anyone who reaches it can use it", settings.host
        )
    sys.exit(_serve(settings))


def _read_settings() -> Settings:
    try:
        return CliApp.run(Settings)
    except ValidationError as error:
        for detail in error.errors():
            name = str(detail["loc"][0]) if detail["loc"] else "settings"
            flag, variable = f"--{name.replace('_', '-')}", f"LORACHAT_{name.upper()}"
            if detail["type"] == "missing":
                _exit(f"{flag} (or {variable}) is required: a hub id, a folder or a GGUF file."
                      " `make model` prepares a small one and prints its folder.")  # fmt: skip
            _exit(f"{flag} (or {variable}): {detail['msg']} (got {detail['input']!r}).")
        raise


def _exit(message: str) -> NoReturn:
    print(f"server: {message}", file=sys.stderr)
    sys.exit(2)


def _serve(settings: Settings) -> int:
    """Run until stopped; the exit code. 1 if the model could not be loaded or the engine died."""
    import uvicorn
    from sse_starlette.sse import AppStatus

    from server.api.app import create_app
    from server.api.drain import DrainingServer
    from server.api.service import Service

    # The library would cut every stream at SIGTERM; here running answers have drain_seconds to finish.
    AppStatus.enable_automatic_graceful_drain = False
    service = Service(
        # More choices than ever fit would be told to come back, for ever.
        max_choices=min(settings.max_choices, settings.max_running + settings.max_waiting),
        keepalive_seconds=settings.keepalive_seconds,
    )
    stopping = threading.Event()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loader = threading.Thread(
            target=_load_and_watch, args=(settings, service, stopping, stop_server), daemon=True
        )
        loader.start()
        yield
        stopping.set()
        if service.status != "loading":
            await asyncio.to_thread(loader.join)

    app = create_app(
        service,
        api_keys=[key.get_secret_value() for key in settings.api_keys],
        max_body_bytes=settings.max_body_bytes,
        lifespan=lifespan,
    )

    def end_drain() -> None:
        if service.status == "ready":
            service.engine.stop()  # its running requests get an error event

    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            # The engine ends what is left after drain_seconds; this is the time those last words take to go out.
            timeout_graceful_shutdown=settings.drain_seconds + 5,
            server_header=False,
        ),
        settings.drain_seconds,
        end_drain,
    )

    def stop_server() -> None:
        server.should_exit = True

    # uvicorn raises the signal that stopped it once more at its end; a clean stop is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server.run()
    return 1 if service.failure is not None else 0


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
    loaded.engine.start()
    service.set_loaded(loaded)
    while not stopping.wait(settings.adapter_poll_seconds):
        refresh()
        # Not all supervisors look at /health; all see an exit.
        if loaded.engine.failure is not None:
            stop_server()
            return
    loaded.engine.stop()


def _load(settings: Settings) -> tuple[Loaded, Callable[[], None]]:
    from server.api.service import Loaded
    from server.cores import available_cores
    from server.engine.engine import Engine
    from server.engine.scheduler import Limits
    from server.memory import KV_CACHE_CONTEXTS, available_bytes, kv_cache_budget
    from server.model.backend import make_backend
    from server.model.catalogue import VolumeCatalogue
    from server.model.digest_cache import cache_folder, cached_weights_digest
    from server.model.loader import load_base

    begun = time.perf_counter()
    threads = settings.threads or available_cores()
    base = load_base(settings.model, settings.max_context, settings.base_id)
    token_bytes = base.config.cache_bytes_per_token

    def budget(weight_bytes: int) -> int:
        if settings.kv_cache_gib is not None:
            return int(settings.kv_cache_gib * 2**30)
        enough = KV_CACHE_CONTEXTS * base.max_context * token_bytes
        return kv_cache_budget(available_bytes(), weight_bytes, enough)

    # The digest reads every value once, and so does packing: side by side they share the file's pages.
    with ThreadPoolExecutor(1) as hashing:
        digest = hashing.submit(
            cached_weights_digest, base.checkpoint, threads, cache_folder(os.environ)
        )
        backend = make_backend(base, settings.kernel, budget, threads)
        weights_digest = digest.result()
    runner = backend.runner
    cache_tokens = runner.num_blocks * runner.block_size
    log.info(
        "base %s: context %d, KV cache of %d tokens (%.2f GB), %d threads",
        base.id,
        base.max_context,
        cache_tokens,
        cache_tokens * token_bytes / 1e9,
        threads,
    )
    if cache_tokens < base.max_context:
        log.warning(
            "the KV cache holds less than one whole context, so requests of over %d tokens are refused:"
            " give it more with --kv-cache-gib, or set --max-context",
            cache_tokens,
        )
    catalogue = VolumeCatalogue(
        base,
        settings.adapters,
        weights_digest=weights_digest,
        max_context=min(base.max_context, cache_tokens),
        created=int(time.time()),
    )
    catalogue.refresh()
    engine = Engine(
        runner,
        Limits(
            max_running=settings.max_running,
            max_step_tokens=max(settings.max_step_tokens, settings.max_running),
            prefill_tokens_beside_decoding=settings.max_prefill_tokens,
            draft_tokens_per_step=DRAFT_TOKENS if settings.speculation else 0,
        ),
        max_context=base.max_context,
        max_waiting=settings.max_waiting,
    )
    log.info(
        "ready after %.1f s; models: %s",
        time.perf_counter() - begun,
        ", ".join(info.id for info in catalogue.list()),
    )
    info = {"kernel": backend.kernel, "weights": backend.weights}
    return Loaded(engine, catalogue, info), catalogue.refresh


if __name__ == "__main__":
    main()
