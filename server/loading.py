"""Settings -> model -> engine and catalogue, in this process. Knows neither HTTP nor who else serves beside it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from server.api.service import Loaded
from server.cores import available_cores
from server.engine.engine import Engine
from server.engine.scheduler import Limits
from server.errors import StartupError
from server.memory import (
    KV_CACHE_CONTEXTS,
    RESERVED_BYTES,
    adapter_budget,
    available_bytes,
    kv_cache_budget,
)
from server.model.adapter_desk import AdapterDesk
from server.model.adapter_memory import AdapterMemory
from server.model.backend import make_backend
from server.model.catalogue import VolumeCatalogue
from server.model.checked_cache import CheckedCache
from server.model.digest_cache import cache_folder, cached_weights_digest
from server.model.loader import BaseModel, load_base
from server.model.score import score
from server.operate.model_checks import bytes_per_token
from server.settings import Settings
from server.types import AdapterHandle

log = logging.getLogger("lorachat")

# A step of so many rows costs hardly more than one of a single row: the weights are read once for all of them.
DRAFT_TOKENS = 8
# A probe is one step, between two others; a machine that takes this long for it serves nobody.
PROBE_SECONDS = 60.0
# With less than so many tokens it is no use starting.
LEAST_CACHE_TOKENS = 256


def load_here(settings: Settings) -> tuple[Loaded, Callable[[], None]]:
    """load() with all the cores and all the memory that this process may use."""
    return load(settings, settings.threads or available_cores(), available_bytes())


def load(settings: Settings, threads: int, memory: int) -> tuple[Loaded, Callable[[], None]]:
    """The running engine with its catalogue, and what looks at the adapters folder again.

    threads: that compute. memory: bytes this process may use, for weights, KV cache and adapters. Raises StartupError.
    """
    begun = time.perf_counter()
    base = load_base(settings.model, settings.max_context, settings.base_id)
    token_bytes = base.config.cache_bytes_per_token

    def budget(weight_bytes: int) -> int:
        return _enough_cache_bytes(settings, base, weight_bytes, memory)

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

    for_adapters = adapter_bytes(settings, backend.weight_bytes, memory)
    catalogue = VolumeCatalogue(
        base,
        settings.adapters,
        weights_digest=weights_digest,
        max_context=min(base.max_context, cache_tokens),
        created=int(time.time()),
        memory=AdapterMemory(for_adapters, max_waiting=settings.max_waiting),
        packer=runner,
        score=probe,
        cache=CheckedCache(cache_folder(os.environ), weights_digest, backend.kernel),
        allow_unsigned=settings.allow_unsigned_adapters,
    )
    adapters = AdapterDesk(catalogue)
    adapters.refresh()
    log.info("adapters may take %.2f GB of memory", for_adapters / 1e9)
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
        "memory_limit": memory,
    }
    return Loaded(engine, catalogue, info, adapters, sizes), adapters.refresh


def cache_bytes(settings: Settings, base: BaseModel, weight_bytes: int, memory: int) -> int:
    """Of keys and values: as set, or what `memory` bytes allow beside the weights. May be too few, or negative."""
    if settings.kv_cache_gib is not None:
        return int(settings.kv_cache_gib * 2**30)
    return kv_cache_budget(memory, weight_bytes, _enough(base))


def adapter_bytes(settings: Settings, weight_bytes: int, memory: int) -> int:
    """That adapters may take: as set, or a part of what the weights leave."""
    if settings.adapter_memory_gib is not None:
        return int(settings.adapter_memory_gib * 2**30)
    return adapter_budget(memory, weight_bytes)


def _enough(base: BaseModel) -> int:
    return KV_CACHE_CONTEXTS * base.max_context * base.config.cache_bytes_per_token


def _enough_cache_bytes(settings: Settings, base: BaseModel, weight_bytes: int, memory: int) -> int:
    """The same. Raises StartupError if nothing useful could be computed with them."""
    found = cache_bytes(settings, base, weight_bytes, memory)
    token_bytes = base.config.cache_bytes_per_token
    least = min(LEAST_CACHE_TOKENS, base.max_context) * token_bytes
    if found >= least:
        return found
    if settings.kv_cache_gib is not None:
        raise StartupError(
            f"--kv-cache-gib {settings.kv_cache_gib:g} holds {found // token_bytes} tokens of this model."
            f" Give it {least / 2**30:.3g} or more, or leave it out."
        )
    raise StartupError(
        f"This process may use {memory / 2**30:.2f} GiB of memory (its container's limit, if it has one). The"
        f" weights take {weight_bytes / 2**30:.2f} GiB, which leaves too little for keys and values. Give it"
        f" {(weight_bytes + RESERVED_BYTES + 2 * _enough(base)) / 2**30:.1f} GiB, or a smaller model; --kv-cache-gib"
        " overrides this."
    )
