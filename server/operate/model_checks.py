"""Checks of what is to be served: the base, its kernel, its adapters, and whether all of it fits into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from server.errors import ServerError
from server.memory import RESERVED_BYTES
from server.model.checkpoint import EMBEDDING
from server.model.loader import BaseModel
from server.native.build import library_path, variants_here
from server.native.library import LibraryMissingError, load_library
from server.operate.finding import Finding, fail, gib, ok, warn
from server.types import Message, ModelInfo

SAMPLE = "Héllo, wörld: 3 × 4 = 12 ✓"
# About what a person reads.
SLOW_TOKENS_PER_SECOND = 4.0


class Volume(Protocol):
    """The catalogue, as far as it is asked here."""

    @property
    def refused(self) -> Mapping[str, str]: ...

    def refresh(self) -> None: ...

    def list(self) -> Sequence[ModelInfo]: ...


def check_base(base: BaseModel, digest: Callable[[], str]) -> Iterator[Finding]:
    """digest: reads every value of the base; raises what reading raises."""
    config, checkpoint = base.config, base.checkpoint
    width = checkpoint.num_bytes / checkpoint.num_values
    stored = {2: "16 bits", 4: "32 bits"}.get(round(width), f"{8 * width:.1f} bits")
    yield ok(
        "model",
        f"{base.id}: {checkpoint.num_values / 1e6:.0f} million values in {stored} each, {config.num_layers} layers,"
        f" context {base.max_context}",
    )
    begun = time.perf_counter()
    try:
        found = digest()
    except (OSError, ValueError, ServerError) as error:
        yield fail("weights", f"they cannot be read: {error}", "copy or download the model again")
        return
    yield ok("weights", f"{found[:19]}…, read in {time.perf_counter() - begun:.1f} s")
    yield from _check_tokenizer(base)


def _check_tokenizer(base: BaseModel) -> Iterator[Finding]:
    tokenizer = base.tokenizer
    text = tokenizer.decode(tokenizer.encode(SAMPLE, add_special_tokens=False))
    if text.strip() != SAMPLE:
        yield warn(
            "tokenizer",
            f"{SAMPLE!r} comes back as {text!r}",
            "see that tokenizer.json is the model's own, and whole",
        )
    else:
        yield ok("tokenizer", f"{base.config.vocab_size} tokens; text comes back as it went in")
    if tokenizer.chat_template is None:
        yield warn(
            "chat template",
            "the model has none: chats are refused, /v1/completions works",
            "use an instruct model, or put its chat_template.jinja into the folder",
        )
        return
    try:
        count = len(tokenizer.encode_chat([Message("user", "Hello")]))
    except Exception as error:  # a template may raise anything
        yield fail("chat template", f"it fails on a greeting: {error}", "mend chat_template.jinja")
        return
    yield ok("chat template", f"a greeting is {count} tokens")


def check_kernel(kernel: str, libraries: Path | None = None) -> Iterator[Finding]:
    """kernel: the setting. libraries: where they are compiled to; None means the usual place."""
    where = {} if libraries is None else {"folder": libraries}
    if kernel == "torch":
        yield warn("kernel", "torch, as asked for", "leave out --kernel: compiled ones are faster")
        return
    advice = "install a C++ compiler and run `make native`"
    try:
        library = load_library(None if kernel == "auto" else kernel, **where)
    except LibraryMissingError as error:
        if kernel == "auto":
            yield warn("kernel", f"torch, several times slower: {error}", advice)
        else:
            yield fail("kernel", f"{kernel} cannot be used: {error}", f"{advice}, or --kernel auto")
        return
    missing = [
        variant for variant in variants_here() if not library_path(variant, **where).exists()
    ]
    if missing and kernel == "auto":
        yield warn("kernel", f"{library.variant}; not compiled: {', '.join(missing)}", advice)
    else:
        yield ok("kernel", library.variant)


def check_adapters(volume: Volume, folder: Path | None) -> Iterator[Finding]:
    """Each version that is on the volume: served, or the reason why not."""
    if folder is None or not folder.is_dir():
        yield warn(
            "adapters",
            f"there is no folder {folder}: the base alone is served",
            "nothing, if that is meant; else set --adapters",
        )
        return
    volume.refresh()
    versions = [info for info in volume.list() if "@" in info.id]
    if not versions and not volume.refused:
        yield ok("adapters", f"none in {folder}")
    for info in versions:
        if info.created > time.time() + 300:
            yield warn(
                "adapter",
                f"{info.id} was made in the future",
                "set the clock of this machine, or of the one that trains",
            )
        else:
            yield ok("adapter", f"{info.id}, {(info.digest or '')[:19]}…")
    for key, reason in sorted(volume.refused.items()):
        yield fail("adapter", f"{key} is refused: {reason}", "publish it again, or remove it")


def check_memory(
    base: BaseModel,
    *,
    weight_bytes: int,
    cache_bytes: int,
    adapter_bytes: int,
    adapter_budget: int,
    least_tokens: int,
    limit: int,
    free: int | None,
) -> Iterator[Finding]:
    """adapter_bytes: of all on the volume; adapter_budget: that they may take. least_tokens: a smaller KV cache is no
    use. limit: bytes this process may use. free: bytes of the machine that nobody uses; None where unknown.
    """
    adapters = min(adapter_bytes, adapter_budget)
    parts = (
        f"weights {gib(weight_bytes)} + KV cache {gib(max(cache_bytes, 0))} + adapters {gib(adapters)}"
        f" + {gib(RESERVED_BYTES)} of its own"
    )
    needed = weight_bytes + max(cache_bytes, 0) + adapters + RESERVED_BYTES
    tokens = cache_bytes // base.config.cache_bytes_per_token
    if tokens < least_tokens or needed > limit:
        yield fail(
            "memory",
            f"{parts} do not fit into {gib(limit)}"
            if needed > limit or cache_bytes <= 0
            else f"a KV cache of {gib(cache_bytes)} holds {tokens} tokens of this model",
            "give the machine or container more, set --kv-cache-gib to what fits, or take a smaller model",
        )
        return
    yield ok("memory", f"{parts} = {gib(needed)} of {gib(limit)}")
    if free is not None and needed > free:
        yield warn(
            "free memory",
            f"{gib(free)} are free now, less than that",
            "end what else uses it (this very server, if it runs, is counted too)",
        )
    if adapter_bytes > adapter_budget:
        yield warn(
            "adapter memory",
            f"the adapters take {gib(adapter_bytes)} and may have {gib(adapter_budget)}: those used least leave it,"
            " and come back when they are asked for",
            "raise --adapter-memory-gib if that happens often, or remove old versions",
        )
    if tokens < base.max_context:
        yield warn(
            "KV cache",
            f"it holds {tokens} tokens, less than one context of {base.max_context}: longer requests are refused",
            "raise --kv-cache-gib, or set --max-context",
        )
    else:
        yield ok("KV cache", f"{tokens} tokens: {tokens / base.max_context:.1f} whole contexts")


def expected_weight_bytes(base: BaseModel, kernel: str) -> int:
    """Memory that the weights will take. One matrix per layer stands for all: whether bfloat16 holds it exactly."""
    num_values = base.checkpoint.num_values
    return num_values * (4 if kernel == "torch" or not _is_bfloat16(base) else 2)


def _is_bfloat16(base: BaseModel) -> bool:
    for index in range(base.config.num_layers):
        values = base.checkpoint.read(f"model.layers.{index}.self_attn.q_proj.weight")
        # uint16 is bfloat16 as the file has it; else its bits are the upper half of a float32's.
        if values.dtype != np.uint16 and (values.view(np.uint32) & 0xFFFF).any():
            return False
    return True


def bytes_per_token(base: BaseModel, weight_bytes: int) -> int:
    """Bytes of weights that a step reads: all, but of an embedding that is no output matrix only a few rows."""
    if base.config.tied:
        return weight_bytes
    rows, width = base.checkpoint.shape(EMBEDDING)
    return weight_bytes - weight_bytes * rows * width // base.checkpoint.num_values


def check_bandwidth(bandwidth: float, step_bytes: int, threads: int) -> Iterator[Finding]:
    """bandwidth: bytes per second, as measured with so many threads."""
    ceiling = bandwidth / step_bytes
    said = (
        f"{bandwidth / 1e9:.1f} GB/s read with {threads} threads: one stream of at most {ceiling:.1f} tokens/s"
        f" ({step_bytes / 1e9:.2f} GB per token)"
    )
    if ceiling < SLOW_TOKENS_PER_SECOND:
        yield warn(
            "bandwidth",
            said,
            "slower than people read: take a machine with more memory channels, or a smaller model",
        )
    else:
        yield ok("bandwidth", said)
