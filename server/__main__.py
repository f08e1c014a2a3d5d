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
from server.settings import LOOPBACK, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.api.key_file import KeyFile
    from server.api.policy import Policy
    from server.api.service import Loaded, Service

log = logging.getLogger("lorachat")

# A step of so many rows costs hardly more than one of a single row: the weights are read once for all of them.
DRAFT_TOKENS = 8
# A probe is one step, between two others; a machine that takes this long for it serves nobody.
PROBE_SECONDS = 60.0
# Whole contexts that the KV cache holds by default, where there is memory for them.
KV_CACHE_CONTEXTS = 8
# With less than so many tokens it is no use starting.
LEAST_CACHE_TOKENS = 256
KEY_FILE_SECONDS = 1.0


def main() -> None:
    if sys.argv[1:2] == ["key"]:
        sys.exit(_make_key(sys.argv[2:]))
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


def _read_settings() -> Settings:
    try:
        return CliApp.run(Settings)
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

    # The library would cut every stream at SIGTERM; here running answers have drain_seconds to finish.
    AppStatus.enable_automatic_graceful_drain = False
    policy, key_file = _policy(settings)
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
            threading.Thread(target=_watch_keys, args=(key_file, stopping), daemon=True).start()
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


def _policy(settings: Settings) -> tuple[Policy, KeyFile | None]:
    """What the door checks. Raises StartupError for what cannot be secure; warns of what may be meant."""
    from server.api.key_file import KeyFile
    from server.api.keys import Keyring, environment_keys
    from server.api.policy import AdminPort, Policy

    key_file = None if settings.api_key_file is None else KeyFile(settings.api_key_file)
    admin_key = None if settings.admin_key is None else settings.admin_key.get_secret_value()
    fixed = environment_keys([key.get_secret_value() for key in settings.api_keys], admin_key)
    keyring = Keyring(fixed, None if key_file is None else key_file.keys)
    if keyring.is_open and not settings.is_local:
        log.warning(
            "listening on %s without an API key: anyone who reaches it can use it", settings.host
        )
    admin_port = None
    if settings.admin_port is not None:
        if settings.admin_host not in LOOPBACK and not keyring.has_admin:
            raise StartupError(
                f"--admin-host {settings.admin_host} lets other machines administer this server, so it needs"
                " LORACHAT_ADMIN_KEY or a key with `admin = true` in the key file."
            )
        admin_port = AdminPort(takes_metrics=not settings.public_metrics)
    policy = Policy(
        keyring=keyring,
        max_body_bytes=settings.max_body_bytes,
        stall_seconds=settings.stall_seconds,
        request_seconds=settings.request_timeout,
        admin_port=admin_port,
        cors_origins=settings.cors_origins,
        trusted_hosts=settings.trusted_hosts,
    )
    return policy, key_file


def _watch_keys(key_file: KeyFile, stopping: threading.Event) -> None:
    """A thread: a key that is taken out of the file is refused a second later."""
    while not stopping.wait(KEY_FILE_SECONDS):
        key_file.refresh()


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
    from server.api.service import Loaded
    from server.cores import available_cores
    from server.engine.engine import Engine
    from server.engine.scheduler import Limits
    from server.memory import RESERVED_BYTES, adapter_budget, available_bytes, kv_cache_budget
    from server.model.adapter_desk import AdapterDesk
    from server.model.adapter_memory import AdapterMemory
    from server.model.backend import make_backend
    from server.model.catalogue import VolumeCatalogue
    from server.model.checked_cache import CheckedCache
    from server.model.digest_cache import cache_folder, cached_weights_digest
    from server.model.loader import load_base
    from server.model.score import score
    from server.types import AdapterHandle

    begun = time.perf_counter()
    threads = settings.threads or available_cores()
    base = load_base(settings.model, settings.max_context, settings.base_id)
    token_bytes = base.config.cache_bytes_per_token

    def budget(weight_bytes: int) -> int:
        least = min(LEAST_CACHE_TOKENS, base.max_context) * token_bytes
        if settings.kv_cache_gib is not None:
            given = int(settings.kv_cache_gib * 2**30)
            if given < least:
                raise StartupError(
                    f"--kv-cache-gib {settings.kv_cache_gib:g} holds {given // token_bytes} tokens of this model."
                    f" Give it {least / 2**30:.3g} or more, or leave it out."
                )
            return given
        memory = available_bytes()
        enough = KV_CACHE_CONTEXTS * base.max_context * token_bytes
        left = kv_cache_budget(memory, weight_bytes, enough)
        if left < least:
            raise StartupError(
                f"This process may use {memory / 2**30:.2f} GiB of memory (its container's limit, if it has one). The"
                f" weights take {weight_bytes / 2**30:.2f} GiB, which leaves too little for keys and values. Give it"
                f" {(weight_bytes + RESERVED_BYTES + 2 * enough) / 2**30:.1f} GiB, or a smaller model; --kv-cache-gib"
                " overrides this."
            )
        return left

    # Said now: reading the weights takes a while.
    budget(base.checkpoint.num_bytes)

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
        max_waiting_tokens=settings.max_waiting_tokens,
    )
    engine.start()  # adapters are tried on it before they are served

    def probe(adapter: AdapterHandle, token_ids: tuple[int, ...]) -> list[float]:
        work = engine.between_steps(lambda: score(runner, adapter, token_ids))
        return work.result(PROBE_SECONDS)

    if settings.adapter_memory_gib is not None:
        adapter_bytes = int(settings.adapter_memory_gib * 2**30)
    else:
        adapter_bytes = adapter_budget(available_bytes(), backend.weight_bytes)
    cache = CheckedCache(cache_folder(os.environ), weights_digest, backend.kernel)
    catalogue = VolumeCatalogue(
        base,
        settings.adapters,
        weights_digest=weights_digest,
        max_context=min(base.max_context, cache_tokens),
        created=int(time.time()),
        memory=AdapterMemory(adapter_bytes, max_waiting=settings.max_waiting),
        packer=runner,
        score=probe,
        cache=cache,
        allow_unsigned=settings.allow_unsigned_adapters,
    )
    adapters = AdapterDesk(catalogue)
    adapters.refresh()
    log.info("adapters may take %.2f GB of memory", adapter_bytes / 1e9)
    log.info(
        "ready after %.1f s; models: %s",
        time.perf_counter() - begun,
        ", ".join(info.id for info in catalogue.list()),
    )
    info = {"kernel": backend.kernel, "weights": backend.weights}
    return Loaded(engine, catalogue, info, adapters), adapters.refresh


if __name__ == "__main__":
    main()
