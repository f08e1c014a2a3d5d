"""`python -m server doctor` and `bench`: the settings of a server -> findings, or numbers, on standard output."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

from pydantic_settings import SettingsConfigDict

from server.cores import available_cores
from server.door import policy_of
from server.errors import StartupError
from server.loading import LEAST_CACHE_TOKENS, adapter_bytes, cache_bytes, load_here
from server.log_format import set_up
from server.memory import available_bytes
from server.model.catalogue import VolumeCatalogue
from server.model.digest_cache import cache_folder
from server.operate import bench_table
from server.operate.bandwidth import read_bandwidth
from server.operate.bench import Bench as Measurement
from server.operate.bench import Numbers
from server.operate.doctor import Examined, examine
from server.operate.finding import as_json as shown_json
from server.operate.finding import failed, table
from server.settings import Settings


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


def doctor(settings: Settings, *, as_json: bool) -> int:
    """Print every finding; 1 if something fails."""
    # What the parts would log is in the findings.
    set_up(settings.log_format, "debug" if settings.log_level == "debug" else "error")
    if settings.log_level != "debug":
        logging.getLogger("lorachat").setLevel(logging.CRITICAL)
    has_keys, refusal = _door(settings)
    what = Examined(
        model=settings.model,
        base_id=settings.base_id,
        adapters=settings.adapters,
        host=settings.host,
        port=settings.port,
        admin=None if settings.admin_port is None else (settings.admin_host, settings.admin_port),
        has_keys=has_keys,
        refusal=refusal,
        threads=settings.threads,
        max_context=settings.max_context,
        kernel=settings.kernel,
        cache=cache_folder(os.environ),
        cache_budget=lambda base, weights: cache_bytes(settings, base, weights, available_bytes()),
        adapter_budget=lambda weights: adapter_bytes(settings, weights, available_bytes()),
        least_cache_tokens=LEAST_CACHE_TOKENS,
        open_volume=lambda base, digest: VolumeCatalogue(
            base,
            settings.adapters,
            weights_digest=digest,
            max_context=base.max_context,
            created=int(time.time()),
            allow_unsigned=settings.allow_unsigned_adapters,
        ),
    )
    findings = list(examine(what))
    print(shown_json(findings) if as_json else table(findings))
    return int(failed(findings))


def _door(settings: Settings) -> tuple[bool, str | None]:
    """Whether a key is asked for, and why a server would not start with these keys."""
    try:
        policy, _ = policy_of(settings)
    except StartupError as error:
        return True, str(error)
    return not policy.keyring.is_open, None


def bench(settings: Settings, *, as_json: bool) -> int:
    """Print the numbers; 1 if the model cannot be loaded."""
    set_up(settings.log_format, "warning")
    threads = settings.threads or available_cores()
    bandwidth = read_bandwidth(threads)  # first: it needs memory that loading fills
    begun = time.perf_counter()
    try:
        # Guessed tokens would make the speed a matter of the text.
        loaded, _ = load_here(settings.model_copy(update={"speculation": False}))
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
    room = loaded.engine.stats.blocks_total * int(info["block_size"])
    measurement = Measurement(
        loaded.engine, loaded.catalogue, room=room, most_users=settings.max_running
    )
    asyncio.run(measurement.measure(numbers))
    loaded.engine.stop()
    print(bench_table.as_json(numbers) if as_json else bench_table.table(numbers))
    return 0
