"""The native decoder's C interface, in ctypes. It knows arrays and handles, and nothing of requests or files.

The calls give the interpreter's lock away while they compute. One decoder must be used by one thread at a time.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.native.build import LIBRARIES, library_path, variants_here

# The order of enum Module in src/decoder.h.
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Modules that read the same input, in the order of enum Input.
INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
LAYER_VECTORS = {"input_norm": 0, "post_attention_norm": 1, "q_norm": 2, "k_norm": 3}
MODEL_VECTORS = {"final_norm": 0, "cos": 1, "sin": 2}
_LEVELS = {3: ("avx512", "avx2", "plain"), 2: ("avx2", "plain"), 1: ("plain",)}

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


def _fields(kind: Any, *names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


class Shape(c.Structure):
    _fields_ = [
        *_fields(
            c.c_int32, "layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab"
        ),
        *_fields(c.c_int32, "max_positions"),
        ("rms_eps", c.c_float),
    ]


class Sampling(c.Structure):
    _fields_ = [
        ("temperature", c.c_float),
        ("top_p", c.c_float),
        ("min_p", c.c_float),
        ("presence_penalty", c.c_float),
        ("frequency_penalty", c.c_float),
        ("repetition_penalty", c.c_float),
        ("top_k", c.c_int32),
    ]


class RowArguments(c.Structure):
    _fields_ = [
        *_fields(c.c_int32, "first", "count", "start", "num_draws", "first_block", "adapter"),
        *_fields(c.c_int32, "first_banned", "num_banned", "num_banned_draws"),
        *_fields(c.c_int32, "first_context", "num_prompt", "num_output", "first_bias", "num_bias"),
        *_fields(c.c_int32, "first_scored", "num_scored", "logprobs", "prompt_logprobs"),
        ("sampling", Sampling),
        ("seed", c.c_uint64),
        ("draw", c.c_int64),
        ("allowed", c.c_void_p),
    ]


class StepArguments(c.Structure):
    _fields_ = [
        *_fields(c.c_int32, "num_tokens", "num_rows", "num_copies", "max_top"),
        ("token_ids", c.c_void_p),
        ("rows", c.POINTER(RowArguments)),
        *_fields(
            c.c_void_p, "block_ids", "copies", "adapters", "banned_ids", "context_ids", "bias_ids"
        ),
        *_fields(c.c_void_p, "scored_ids", "biases", "num_sampled", "sampled_ids", "sampled_ranks"),
        *_fields(c.c_void_p, "sampled_top_ids", "sampled_logprobs", "sampled_top_logprobs"),
        *_fields(
            c.c_void_p, "scored_ranks", "scored_top_ids", "scored_logprobs", "scored_top_logprobs"
        ),
    ]


class NativeError(Exception):
    """A call into the library failed."""


class LibraryMissingError(Exception):
    """No compiled library fits this machine and these sources."""


def load_library(variant: str | None = None, folder: Path = LIBRARIES) -> Library:
    """The best variant for this processor, or the one named. Raises LibraryMissingError."""
    available = {v: p for v in variants_here() if (p := library_path(v, folder)).exists()}
    if not available:
        raise LibraryMissingError("it is not compiled for these sources; `make native` does that")
    try:
        if variant is None:
            probe = c.CDLL(str(available["plain"]))
            variant = next(v for v in _LEVELS[probe.lorachat_cpu_level()] if v in available)
        return Library(available[variant])
    except (OSError, KeyError, StopIteration) as error:
        raise LibraryMissingError(f"it cannot be loaded here ({error})") from None


class Library:
    """One variant, loaded."""

    def __init__(self, path: Path) -> None:
        self._dll = c.CDLL(str(path))
        p, i, n = c.c_void_p, c.c_int, c.c_int64
        self._declare("variant", c.c_char_p)
        self._declare("block_size", i)
        self._declare("block_bytes", n, c.POINTER(Shape))
        self._declare("struct_bytes", i, i)
        self._declare("weight_bytes", n, p)
        self._declare("create", c.c_char_p, c.POINTER(Shape), i, n, c.POINTER(p))
        self._declare("destroy", None, p)
        self._declare("set_matrix", c.c_char_p, p, i, i, p, p, i, i, c.POINTER(i))
        self._declare("set_vector", c.c_char_p, p, i, i, p, n)
        self._declare("create_adapter", c.c_char_p, p, c.POINTER(p))
        self._declare("destroy_adapter", None, p)
        self._declare("set_adapter", c.c_char_p, p, p, i, i, p, i, i, i, p, p, p, p, p)
        self._declare("step", c.c_char_p, p, c.POINTER(StepArguments))
        for number, structure in enumerate((Shape, RowArguments, StepArguments)):
            if self.call("struct_bytes", number) != c.sizeof(structure):
                raise LibraryMissingError(f"its {structure.__name__} has another layout")

    @property
    def variant(self) -> str:
        """avx512, avx2, neon or plain."""
        name: bytes = self.call("variant")
        return name.decode()

    @property
    def block_size(self) -> int:
        """Positions per KV block."""
        size: int = self.call("block_size")
        return size

    def block_bytes(self, shape: Shape) -> int:
        """Memory of one KV block, all layers."""
        size: int = self.call("block_bytes", c.byref(shape))
        return size

    def _declare(self, name: str, result: Any, *arguments: Any) -> None:
        function = self._function(name)
        function.restype, function.argtypes = result, list(arguments)

    def _function(self, name: str) -> Any:
        return getattr(self._dll, f"lorachat_{name}")

    def call(self, name: str, *arguments: Any) -> Any:
        return self._function(name)(*arguments)

    def check(self, name: str, *arguments: Any) -> None:
        """Raises NativeError with the library's own message."""
        message = self._function(name)(*arguments)
        if message is not None:
            raise NativeError(message.decode(errors="replace"))


class NativeAdapter:
    """LoRA matrices of one adapter version, packed. Freed with the object."""

    def __init__(self, library: Library, decoder: c.c_void_p) -> None:
        self._library = library
        self._decoder = decoder
        self.handle = c.c_void_p()
        library.check("create_adapter", decoder, c.byref(self.handle))

    def __del__(self) -> None:
        self._library.call("destroy_adapter", self.handle)

    def set_input(
        self, layer: int, number: int, pairs: Sequence[tuple[str, Floats, Floats, float]]
    ) -> None:
        """All pairs (module, A, B, scaling) of the modules INPUTS[number] of one layer."""
        a = np.ascontiguousarray(np.concatenate([pair[1] for pair in pairs]), np.float32)
        bs = [np.ascontiguousarray(pair[2], np.float32) for pair in pairs]
        count = len(pairs)
        self._library.check(
            "set_adapter", self._decoder, self.handle, layer, number, a.ctypes.data, a.shape[0], a.shape[1], count,
            (c.c_int * count)(*(MODULES.index(pair[0]) for pair in pairs)),
            (c.c_int * count)(*(b.shape[1] for b in bs)),
            (c.c_int * count)(*(b.shape[0] for b in bs)),
            (c.c_void_p * count)(*(b.ctypes.data for b in bs)),
            (c.c_float * count)(*(pair[3] for pair in pairs)),
        )  # fmt: skip


class NativeDecoder:
    """A decoder with its weights and its KV blocks."""

    def __init__(self, library: Library, shape: Shape, *, threads: int, num_blocks: int) -> None:
        self.library = library
        self.shape = shape
        self._handle = c.c_void_p()
        library.check("create", c.byref(shape), threads, num_blocks, c.byref(self._handle))

    def __del__(self) -> None:
        self.library.call("destroy", self._handle)

    @property
    def weight_bytes(self) -> int:
        """Memory that the packed weights take."""
        size: int = self.library.call("weight_bytes", self._handle)
        return size

    def set_linear(self, layer: int, module: str, weight: npt.NDArray[Any]) -> bool:
        """weight: (out, in) float32, or uint16 bfloat16 bits. Whether it is stored as bfloat16."""
        return self._set_matrix(layer, MODULES.index(module), weight)

    def set_output(self, weight: npt.NDArray[Any]) -> bool:
        """The output matrix (vocab, hidden); it is the embedding too unless set_embedding is called."""
        return self._set_matrix(-1, 0, weight)

    def set_embedding(self, weight: npt.NDArray[Any]) -> bool:
        return self._set_matrix(-1, 1, weight)

    def set_layer_vector(self, layer: int, kind: str, values: Floats) -> None:
        """kind: of LAYER_VECTORS."""
        self._set_vector(layer, LAYER_VECTORS[kind], values)

    def set_bias(self, layer: int, module: str, values: Floats) -> None:
        self._set_vector(layer, 10 + MODULES.index(module), values)

    def set_model_vector(self, kind: str, values: Floats) -> None:
        """kind: of MODEL_VECTORS."""
        self._set_vector(-1, MODEL_VECTORS[kind], values)

    def new_adapter(self) -> NativeAdapter:
        return NativeAdapter(self.library, self._handle)

    def step(self, arguments: StepArguments) -> None:
        self.library.check("step", self._handle, c.byref(arguments))

    def _set_matrix(self, layer: int, module: int, weight: npt.NDArray[Any]) -> bool:
        weight = np.ascontiguousarray(weight)
        is_bits = weight.dtype == np.uint16
        assert is_bits or weight.dtype == np.float32, weight.dtype
        exact = c.c_int()
        self.library.check(
            "set_matrix", self._handle, layer, module,
            None if is_bits else weight.ctypes.data, weight.ctypes.data if is_bits else None,
            weight.shape[0], weight.shape[1], c.byref(exact),
        )  # fmt: skip
        return bool(exact.value)

    def _set_vector(self, layer: int, kind: int, values: Floats) -> None:
        values = np.ascontiguousarray(values, np.float32)
        self.library.check("set_vector", self._handle, layer, kind, values.ctypes.data, values.size)


def pointer(array: npt.NDArray[Any]) -> int:
    """The address of an array's first element; the array must outlive the call it is used in."""
    address: int = array.ctypes.data
    return address
