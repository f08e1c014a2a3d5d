"""Batch -> one call into the native decoder -> tokens. The engine's Runner on machines with a compiled library.

What a row gives does not depend on the other rows, on how its prompt was cut, on cached blocks or on the number of
threads: the same bits in any company (server/native/src/matrix.h says why).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from server.model.config import DecoderConfig
from server.model.lora import AdapterWeights, Ranks
from server.model.native_adapter import AdapterPacker, PackedAdapter
from server.native.library import (
    INPUTS,
    MODULES,
    Library,
    NativeAdapter,
    NativeDecoder,
    RowArguments,
    Sampling,
    Shape,
    StepArguments,
    pointer,
)
from server.step import Batch, Row, RowResult, Sampled
from server.types import TokenLogprob

_BLOCKS = {
    name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    for name in MODULES
}


class Parameters(Protocol):
    """A checkpoint as this needs it; the names are transformers'."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """float32, or uint16 with the bits of bfloat16."""
        ...


class Base(Protocol):
    """What is needed of a base model. cos, sin: (positions, head_dim // 2)."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def checkpoint(self) -> Parameters: ...

    @property
    def cos(self) -> npt.NDArray[np.float32]: ...

    @property
    def sin(self) -> npt.NDArray[np.float32]: ...


MAX_NAMES = 4


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """How the weight matrices are stored. Bytes are of the values, without padding.

    names_float32: of the matrices with a value that bfloat16 cannot hold.
    """

    bytes_bf16: int
    bytes_float32: int
    matrices_bf16: int
    names_float32: tuple[str, ...]

    @property
    def matrices_float32(self) -> int:
        return len(self.names_float32)

    @property
    def exceptions(self) -> str:
        """Which matrices are float32 among others that are not: the first few names. Empty if all are alike."""
        if self.kind != "mixed":
            return ""
        more = self.matrices_float32 - MAX_NAMES
        return ", ".join(self.names_float32[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")

    @property
    def kind(self) -> str:
        """bfloat16-exact, float32 or mixed."""
        if not self.matrices_float32:
            return "bfloat16-exact"
        return "mixed" if self.matrices_bf16 else "float32"


# Blocks beyond those that the engine hands out: for computing something beside its sequences (score.py).
SPARE_BLOCKS = 2


class NativeRunner:
    """Owns the packed weights, the KV blocks and the packed adapters."""

    def __init__(self, library: Library, base: Base, *, kv_cache_bytes: int, threads: int) -> None:
        """Reads all weights, one tensor at a time.

        Raises ValueError if kv_cache_bytes does not hold one block, NativeError when memory runs out.
        """
        shape = shape_of(base.config, len(base.cos))
        self.block_size = library.block_size
        self.num_blocks = kv_cache_bytes // library.block_bytes(shape)
        if self.num_blocks < 1:
            raise ValueError(
                f"a KV cache of {kv_cache_bytes} bytes holds no block of {library.block_bytes(shape)}"
            )
        self.kernel = library.variant
        self._vocab = base.config.vocab_size
        self._decoder = NativeDecoder(
            library, shape, threads=threads, num_blocks=self.num_blocks + SPARE_BLOCKS
        )
        self._packer = AdapterPacker(library, shape, base.config)
        self.weights = _load(self._decoder, base)
        self._adapters: WeakKeyDictionary[AdapterWeights, NativeAdapter] = WeakKeyDictionary()

    @property
    def weight_bytes(self) -> int:
        return self._decoder.weight_bytes

    def step(self, batch: Batch) -> list[RowResult]:
        # Rows of one adapter lie side by side, so that it is applied once per product and not once per row.
        order = sorted(range(len(batch.rows)), key=lambda i: _adapter_key(batch.rows[i]))
        rows = [batch.rows[i] for i in order]
        arguments = _Arguments(rows, batch, self._vocab)
        handles = [self._adapter(adapter).handle.value for adapter in arguments.adapters]
        self._decoder.step(arguments.structure(handles))
        results: list[RowResult] = [RowResult()] * len(rows)
        for place, result in zip(order, arguments.results(), strict=True):
            results[place] = result
        return results

    @property
    def spare_blocks(self) -> tuple[int, ...]:
        return tuple(range(self.num_blocks, self.num_blocks + SPARE_BLOCKS))

    def adapter_bytes(self, ranks: Ranks) -> int:
        return self._packer.adapter_bytes(ranks)

    def pack(self, adapter: AdapterWeights) -> PackedAdapter:
        return self._packer.pack(adapter)

    def _adapter(self, adapter: AdapterWeights | PackedAdapter) -> NativeAdapter:
        if isinstance(adapter, PackedAdapter):
            return adapter.native
        packed = self._adapters.get(adapter)
        if packed is None:
            packed = self._adapters[adapter] = self._packer.pack(adapter).native
        return packed


def shape_of(config: DecoderConfig, positions: int) -> Shape:
    """positions: length of the rotary table."""
    return Shape(
        layers=config.num_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        max_positions=positions,
        rms_eps=config.rms_norm_eps,
    )


def _load(decoder: NativeDecoder, base: Base) -> StoredWeights:
    config, read = base.config, base.checkpoint.read
    names: tuple[list[str], list[str]] = ([], [])  # float32, bfloat16
    size = [0, 0]

    def note(name: str, values: npt.NDArray[Any], exact: bool) -> None:
        names[exact].append(name)
        size[exact] += values.size * (2 if exact else 4)

    def vector(name: str) -> npt.NDArray[np.float32]:
        return as_float32(read(name))

    decoder.set_model_vector("cos", base.cos)
    decoder.set_model_vector("sin", base.sin)
    decoder.set_model_vector("final_norm", vector("model.norm.weight"))
    name = "model.embed_tokens.weight"
    embedding = read(name)
    if config.tied:
        note(name, embedding, decoder.set_output(embedding))
    else:
        note(name, embedding, decoder.set_embedding(embedding))
        output = read("lm_head.weight")
        note("lm_head.weight", output, decoder.set_output(output))
        del output
    del embedding
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for kind, name in (
            ("input_norm", "input_layernorm"),
            ("post_attention_norm", "post_attention_layernorm"),
        ):
            decoder.set_layer_vector(layer, kind, vector(f"{prefix}{name}.weight"))
        if config.qk_norm:
            for kind in ("q_norm", "k_norm"):
                decoder.set_layer_vector(layer, kind, vector(f"{prefix}self_attn.{kind}.weight"))
        for module in MODULES:
            name = f"{prefix}{_BLOCKS[module]}.{module}"
            weight = read(f"{name}.weight")
            note(f"{name}.weight", weight, decoder.set_linear(layer, module, weight))
            if (config.qkv_bias and module in INPUTS[0]) or (config.o_bias and module == "o_proj"):
                decoder.set_bias(layer, module, vector(f"{name}.bias"))
    return StoredWeights(size[1], size[0], len(names[1]), tuple(names[0]))


def as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """float32 as it is; uint16 as the bfloat16 bits they are."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _adapter_key(row: Row) -> str:
    return "" if row.adapter is None else row.adapter.key


class _Flat:
    """Lists of all rows behind each other, as one array of 32-bit integers."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def add(self, values: Iterable[int]) -> int:
        """Where they begin."""
        first = len(self.values)
        self.values.extend(values)
        return first

    def array(self) -> npt.NDArray[np.int32]:
        return np.array(self.values, np.int32)


class _Arguments:
    """A batch in the library's form: arrays that live as long as this does, and the results."""

    def __init__(self, rows: Sequence[Row], batch: Batch, vocab: int) -> None:
        self._rows = rows
        self._copies = batch.copies
        self.adapters: list[AdapterWeights | PackedAdapter] = []
        self._lists = {
            name: _Flat()
            for name in (
                "token_ids",
                "block_ids",
                "banned_ids",
                "context_ids",
                "bias_ids",
                "scored_ids",
            )
        }
        self._biases: list[float] = []
        self._masks: list[object] = []
        self._keep: list[object] = []
        self._structures = (RowArguments * len(rows))()
        self._max_top = 0
        for row, structure in zip(rows, self._structures, strict=True):
            self._fill(row, structure, vocab)
        self._num_draws = sum(row.num_draws for row in rows)

    def _fill(self, row: Row, to: RowArguments, vocab: int) -> None:
        lists, params = self._lists, row.params
        to.first = lists["token_ids"].add(row.token_ids)
        to.count = len(row.token_ids)
        to.start = row.start
        to.num_draws = row.num_draws
        to.first_block = lists["block_ids"].add(row.block_ids)
        to.adapter = -1
        if row.adapter is not None:
            assert isinstance(row.adapter, AdapterWeights | PackedAdapter)
            if not self.adapters or self.adapters[-1] is not row.adapter:
                self.adapters.append(row.adapter)
            to.adapter = len(self.adapters) - 1
        to.num_scored = len(row.scored_ids)
        if row.scored_ids:
            to.first_scored = lists["scored_ids"].add(row.scored_ids)
        to.logprobs = -1 if params.logprobs is None else min(params.logprobs, vocab)
        to.prompt_logprobs = (
            -1 if params.prompt_logprobs is None else min(params.prompt_logprobs, vocab)
        )
        self._max_top = max(self._max_top, to.logprobs, to.prompt_logprobs)
        if row.num_draws == 0:
            return
        to.seed, to.draw = row.seed, row.draw
        to.sampling = Sampling(
            params.temperature, params.top_p, params.min_p, params.presence_penalty, params.frequency_penalty,
            params.repetition_penalty, params.top_k,
        )  # fmt: skip
        if row.num_banned_draws:
            to.num_banned_draws = row.num_banned_draws
            to.num_banned = len(row.banned_ids)
            to.first_banned = lists["banned_ids"].add(row.banned_ids)
        if params.has_penalties:
            to.first_context = lists["context_ids"].add(row.prompt_ids)
            lists["context_ids"].add(row.output_ids)
            to.num_prompt, to.num_output = len(row.prompt_ids), len(row.output_ids)
        if params.logit_bias:
            to.first_bias = lists["bias_ids"].add(token for token, _ in params.logit_bias)
            to.num_bias = len(params.logit_bias)
            self._biases.extend(bias for _, bias in params.logit_bias)
        if row.constraint is not None:
            mask = np.frombuffer(row.constraint.allowed(), np.uint32)
            assert mask.size * 32 >= vocab
            self._masks.append(mask)
            to.allowed = pointer(mask)

    def structure(self, adapter_handles: Sequence[int | None]) -> StepArguments:
        arrays = {name: flat.array() for name, flat in self._lists.items()}
        arrays["copies"] = np.array([(copy.source, copy.target) for copy in self._copies], np.int32)
        arrays["biases"] = np.array(self._biases, np.float32)
        arrays["adapters"] = np.array(adapter_handles or [0], np.uint64)
        draws, scored = self._num_draws, len(self._lists["scored_ids"].values)
        self._num_sampled = np.zeros(len(self._rows), np.int32)
        self._sampled = _Told(draws, self._max_top)
        self._scored = _Told(scored, self._max_top)
        arguments = StepArguments(
            num_tokens=arrays["token_ids"].size,
            num_rows=len(self._rows),
            num_copies=len(self._copies),
            max_top=self._max_top,
            rows=self._structures,
            num_sampled=pointer(self._num_sampled),
            sampled_ids=pointer(self._sampled.ids),
            sampled_ranks=pointer(self._sampled.ranks),
            sampled_top_ids=pointer(self._sampled.top_ids),
            sampled_logprobs=pointer(self._sampled.logprobs),
            sampled_top_logprobs=pointer(self._sampled.top_logprobs),
            scored_ranks=pointer(self._scored.ranks),
            scored_top_ids=pointer(self._scored.top_ids),
            scored_logprobs=pointer(self._scored.logprobs),
            scored_top_logprobs=pointer(self._scored.top_logprobs),
            **{name: pointer(array) for name, array in arrays.items()},
        )
        self._keep = [arrays, arguments]
        return arguments

    def results(self) -> Iterable[RowResult]:
        first_draw = first_scored = 0
        for row, count in zip(self._rows, self._num_sampled.tolist(), strict=True):
            sampled = []
            for i in range(first_draw, first_draw + count):
                token = int(self._sampled.ids[i])
                logprobs = row.params.logprobs
                told = None if logprobs is None else self._sampled.entry(i, token, logprobs)
                sampled.append(Sampled(token, told))
            first_draw += row.num_draws
            top = row.params.prompt_logprobs or 0
            scored = [
                self._scored.entry(first_scored + i, token, top)
                for i, token in enumerate(row.scored_ids)
            ]
            first_scored += len(row.scored_ids)
            yield RowResult(tuple(sampled), tuple(scored))


class _Told:
    """Room for what is told of so many tokens."""

    def __init__(self, count: int, max_top: int) -> None:
        self.ids = np.empty(count, np.int32)
        self.ranks = np.empty(count, np.int32)
        self.logprobs = np.empty(count, np.float64)
        self.top_ids = np.full((count, max_top), -1, np.int32)
        self.top_logprobs = np.empty((count, max_top), np.float64)

    def entry(self, i: int, token_id: int, top: int) -> TokenLogprob:
        pairs = zip(
            self.top_ids[i, :top].tolist(), self.top_logprobs[i, :top].tolist(), strict=True
        )
        return TokenLogprob(token_id, float(self.logprobs[i]), int(self.ranks[i]), tuple(pairs))
