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
from pydantic_settings import CliApp, SettingsConfigDict

from server.errors import StartupError
from server.log_format import set_up
from server.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.api.observer import Reporter
    from server.api.service import Loaded, Service
    from server.api.tracing import Tracing
    from server.model.catalogue import VolumeCatalogue
    from server.model.loader import BaseModel

log = logging.getLogger("lorachat")

# A step of so many rows costs hardly more than one of a single row: the weights are read once for all of them.
DRAFT_TOKENS = 8
# Either of them asks for traces, as in every program with OpenTelemetry.
OTEL_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# Whole contexts that the KV cache holds by default, where there is memory for them.
KV_CACHE_CONTEXTS = 8


class Doctor(Settings):
    """Check all that a server with these settings needs, and say what is wrong and what to do.

    --json prints the findings as JSON. Exit code 0: it can serve; 1: something fails; 2: a wrong setting.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m server doctor")


class Bench(Settings):
    """Measure the model on this machine, in about a minute: tokens/s for 1 to 16 users, first token, prompt, memory.

    --json prints the numbers as JSON. Settings of the listener and of the log have no effect.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m server bench")


def main() -> None:
    command, *arguments = sys.argv[1:] or [""]
    # Nothing is fetched because of a request; the base may be, once, at start, when it is a hub id.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if command in ("doctor", "bench"):
        as_json = "--json" in arguments
        arguments = [argument for argument in arguments if argument != "--json"]
        if command == "doctor":
            sys.exit(_doctor(_read_settings(Doctor, arguments), as_json=as_json))
        sys.exit(_bench(_read_settings(Bench, arguments), as_json=as_json))
    settings = _read_settings(Settings, sys.argv[1:])
    set_up(settings.log_format, settings.log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.api_keys:
        log.warning(
            "listening on %s without an API key: anyone who reaches it can use it", settings.host
        )
    sys.exit(_serve(settings))


def _read_settings(kind: type[Settings], arguments: list[str]) -> Settings:
    try:
        return CliApp.run(kind, cli_args=arguments)
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


def _doctor(settings: Settings, *, as_json: bool) -> int:
    from server.model.digest_cache import cache_folder
    from server.operate.doctor import Examined, examine
    from server.operate.finding import as_json as shown_json
    from server.operate.finding import failed, table

    # What the parts would log is in the findings.
    set_up(settings.log_format, "debug" if settings.log_level == "debug" else "error")
    if settings.log_level != "debug":
        logging.getLogger("lorachat").setLevel(logging.CRITICAL)
    what = Examined(
        model=settings.model,
        base_id=settings.base_id,
        adapters=settings.adapters,
        host=settings.host,
        port=settings.port,
        has_keys=bool(settings.api_keys),
        threads=settings.threads,
        max_context=settings.max_context,
        kernel=settings.kernel,
        cache=cache_folder(os.environ),
        cache_budget=lambda base, weight_bytes: _cache_budget(settings, base, weight_bytes),
        open_volume=lambda base, digest: _open_volume(settings, base, digest, base.max_context),
    )
    findings = list(examine(what))
    print(shown_json(findings) if as_json else table(findings))
    return int(failed(findings))


def _bench(settings: Settings, *, as_json: bool) -> int:
    from server.cores import available_cores
    from server.operate import bench_table
    from server.operate.bandwidth import read_bandwidth
    from server.operate.bench import Bench as Measurement
    from server.operate.bench import Numbers

    set_up(settings.log_format, "warning")
    threads = settings.threads or available_cores()
    bandwidth = read_bandwidth(threads)  # first: it needs memory that loading fills
    begun = time.perf_counter()
    try:
        # Guessed tokens would make the speed a matter of the text.
        loaded, _ = _load(settings.model_copy(update={"speculation": False}))
    except StartupError as error:
        print(f"server: {error}", file=sys.stderr)
        return 1
    info, sizes = loaded.info or {}, loaded.sizes or {}
    numbers = Numbers(
        model=loaded.catalogue.list()[0].root,
        kernel=info["kernel"],
        weights=info["weights"],
        threads=threads,
        load_seconds=time.perf_counter() - begun,
        bandwidth=bandwidth,
        step_bytes=sizes["step"],
    )
    loaded.engine.start()
    room = loaded.engine.stats.blocks_total * int(info["block_size"])
    measurement = Measurement(
        loaded.engine, loaded.catalogue, room=room, most_users=settings.max_running
    )
    asyncio.run(measurement.measure(numbers))
    loaded.engine.stop()
    print(bench_table.as_json(numbers) if as_json else bench_table.table(numbers))
    return 0


def _serve(settings: Settings) -> int:
    """Run until stopped; the exit code. 1 if the model could not be loaded or the engine died."""
    import uvicorn
    from sse_starlette.sse import AppStatus

    from server.api.app import create_app
    from server.api.drain import DrainingServer
    from server.api.request_log import RequestLog
    from server.api.service import Service

    # The library would cut every stream at SIGTERM; here running answers have drain_seconds to finish.
    AppStatus.enable_automatic_graceful_drain = False
    service = Service(
        # More choices than ever fit would be told to come back, for ever.
        max_choices=min(settings.max_choices, settings.max_running + settings.max_waiting),
        keepalive_seconds=settings.keepalive_seconds,
        keeps_content=settings.log_content,
    )
    tracing = _tracing(settings)
    reporters: list[Reporter] = [RequestLog(with_content=settings.log_content)]
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
        reporters=[*reporters, tracing] if tracing is not None else reporters,
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
    if tracing is not None:
        tracing.close()
    return 1 if service.failure is not None else 0


def _tracing(settings: Settings) -> Tracing | None:
    """Where traces are asked for, by the setting or by OpenTelemetry's own variables."""
    by_variable = any(os.environ.get(name) for name in OTEL_VARIABLES)
    if settings.otel_endpoint is None and not by_variable:
        return None
    try:
        from server.api.tracing import Tracing, otlp_exporter
    except ImportError as error:
        missing = (
            f"traces need packages that are not installed ({error.name}):"
            " pip install -r requirements/otel.txt -c requirements/constraints-cpu.txt"
        )
        if settings.otel_endpoint is not None:
            _exit(f"{missing}, or leave out --otel-endpoint (or LORACHAT_OTEL_ENDPOINT).")
        # A cluster may set these for every program in it.
        log.warning("no traces are sent, although OTEL_EXPORTER_OTLP_… is set: %s", missing)
        return None
    return Tracing(otlp_exporter(settings.otel_endpoint), with_content=settings.log_content)


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
    from server.memory import available_bytes
    from server.model.backend import make_backend
    from server.model.digest_cache import cache_folder, cached_weights_digest
    from server.model.loader import load_base
    from server.operate.model_checks import bytes_per_token

    begun = time.perf_counter()
    threads = settings.threads or available_cores()
    base = load_base(settings.model, settings.max_context, settings.base_id)
    token_bytes = base.config.cache_bytes_per_token

    def budget(weight_bytes: int) -> int:
        return _cache_budget(settings, base, weight_bytes)

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
    catalogue = _open_volume(settings, base, weights_digest, min(base.max_context, cache_tokens))
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
    info = {
        "kernel": backend.kernel,
        "weights": backend.weights,
        "threads": str(threads),
        "block_size": str(runner.block_size),
        "max_running": str(settings.max_running),
    }
    sizes = {
        "weight": backend.weight_bytes,
        "step": bytes_per_token(base, backend.weight_bytes),
        "memory_limit": available_bytes(),
    }
    return Loaded(engine, catalogue, info, sizes), catalogue.refresh


def _cache_budget(settings: Settings, base: BaseModel, weight_bytes: int) -> int:
    """Bytes for the KV cache: as set, or what the memory allows."""
    from server.memory import available_bytes, kv_cache_budget

    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * 2**30)
    enough = KV_CACHE_CONTEXTS * base.max_context * base.config.cache_bytes_per_token
    return kv_cache_budget(available_bytes(), weight_bytes, enough)


def _open_volume(
    settings: Settings, base: BaseModel, weights_digest: str, max_context: int
) -> VolumeCatalogue:
    """The models there are, before the first look at the volume."""
    from server.model.catalogue import VolumeCatalogue

    return VolumeCatalogue(
        base,
        settings.adapters,
        weights_digest=weights_digest,
        max_context=max_context,
        created=int(time.time()),
    )


if __name__ == "__main__":
    main()
