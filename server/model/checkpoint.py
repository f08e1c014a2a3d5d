"""The parameters of a base: their names, shapes and values, from a folder of safetensors or a GGUF file.

Every parameter the configuration asks for is there with its shape, and no other: checked at opening, before any value
is read. Reading is safe from several threads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from server.errors import ModelLoadError
from server.model.config import DecoderConfig, read_config
from server.model.gguf_file import GGUFHeader, GGUFTensor, read_tensor
from server.model.gguf_model import PERMUTED, parameter_name, settings_of, unpermute
from server.model.gguf_model import ROPE_FACTORS as GGUF_ROPE_FACTORS
from server.model.mapped_file import MappedFile
from server.model.safetensors_file import (
    FLOAT_TYPES,
    Entry,
    SafetensorsError,
    Values,
    read_entry,
    read_table,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
GGUF_SUFFIX = ".gguf"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
# Of old Llama checkpoints; the rotary table is computed from the configuration.
IGNORED_SUFFIX = "rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor: its shape, the bytes it has in its file, and how to get it."""

    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[], Values]


class Checkpoint:
    """settings: the configuration as a dict. files: what the values and the configuration were read from."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        config: DecoderConfig,
        tensors: Mapping[str, Stored],
        files: Iterable[Path],
    ) -> None:
        """Raises ModelLoadError where names or shapes are not those of the configuration."""
        self.settings = settings
        self.files = tuple(files)
        self.config, self._tensors = _bind(config, tensors)
        self.names = sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str) -> Values:
        """The values, C-contiguous: float32, or uint16 holding the bits of bfloat16 if the file stores that.

        Read-only where it is a view of the file; its memory is given back with the last reference to it.
        """
        return self._tensors[name].read()

    @property
    def num_values(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored tensors in the files."""
        return sum(tensor.num_bytes for tensor in self._tensors.values())


def open_checkpoint(path: Path) -> Checkpoint:
    """path: a folder with config.json and safetensors, or a .gguf file. Raises ModelLoadError."""
    return open_gguf(path)[0] if path.suffix == GGUF_SUFFIX else open_folder(path)


def expected_shapes(c: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Parameters by transformers' names, weights as (out, in)."""
    q, kv, hidden, inner = (
        c.num_heads * c.head_dim,
        c.num_kv_heads * c.head_dim,
        c.hidden_size,
        c.intermediate_size,
    )
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (c.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not c.tied:
        shapes[OUTPUT] = (c.vocab_size, hidden)
    for index in range(c.num_layers):
        layer = f"model.layers.{index}."
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
        attention = f"{layer}self_attn."
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{attention}{name}.weight"] = (rows, hidden)
            if c.qkv_bias:
                shapes[f"{attention}{name}.bias"] = (rows,)
        shapes[f"{attention}o_proj.weight"] = (hidden, q)
        if c.o_bias:
            shapes[f"{attention}o_proj.bias"] = (hidden,)
        if c.qk_norm:
            shapes[f"{attention}q_norm.weight"] = (c.head_dim,)
            shapes[f"{attention}k_norm.weight"] = (c.head_dim,)
        shapes[f"{layer}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{layer}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def _bind(
    config: DecoderConfig, stored: Mapping[str, Stored]
) -> tuple[DecoderConfig, dict[str, Stored]]:
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(IGNORED_SUFFIX)}
    if config.tied and OUTPUT in tensors:
        if EMBEDDING not in tensors:
            tensors[EMBEDDING] = tensors.pop(OUTPUT)
        elif np.array_equal(tensors[EMBEDDING].read(), tensors[OUTPUT].read()):
            del tensors[OUTPUT]
        else:  # as transformers does: what is stored counts for more than what is said
            config = replace(config, tied=False)
    shapes = expected_shapes(config)
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ModelLoadError(f"the checkpoint lacks {_some(missing)}.")
    if extra := sorted(tensors.keys() - shapes.keys()):
        raise ModelLoadError(
            f"the checkpoint has {_some(extra)}, which its configuration does not speak of."
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ModelLoadError(
                f"{name} has shape {list(tensors[name].shape)}; by the configuration it is {list(shape)}."
            )
    return config, tensors


def _some(names: list[str]) -> str:
    return (
        f"{names[0]} and {len(names) - 1} more tensors"
        if len(names) > 1
        else f"the tensor {names[0]}"
    )


def open_gguf(path: Path) -> tuple[Checkpoint, Mapping[str, Any]]:
    """The checkpoint, and the file's metadata (which holds the vocabulary, so it is not kept)."""
    file = MappedFile(path)
    header = GGUFHeader(file)
    settings = settings_of(header, file)
    config = read_config(settings)
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    permuted = header.metadata["general.architecture"] in PERMUTED
    tensors = {}
    for name, tensor in header.tensors.items():
        if name == GGUF_ROPE_FACTORS:  # part of the settings
            continue
        parameter = parameter_name(name) or name
        module = parameter.split(".")[-2] if "self_attn" in parameter else ""
        num_heads = heads.get(module) if permuted else None
        if num_heads is not None and tensor.shape[0] % (2 * num_heads):
            raise ModelLoadError(
                f"{name} has {tensor.shape[0]} rows, which are not {num_heads} heads."
            )
        tensors[parameter] = Stored(
            tensor.shape, tensor.size, _gguf_reader(file, tensor, num_heads)
        )
    return Checkpoint(settings, config, tensors, [path]), header.metadata


def _gguf_reader(
    file: MappedFile, tensor: GGUFTensor, num_heads: int | None
) -> Callable[[], Values]:
    if num_heads is None:
        return lambda: read_tensor(file, tensor)
    return lambda: unpermute(read_tensor(file, tensor), num_heads)


def open_folder(folder: Path) -> Checkpoint:
    """A folder as save_pretrained of transformers writes it, single file or shards."""
    settings = read_json(folder / CONFIG_FILE)
    config = read_config(settings)
    if (folder / INDEX_FILE).is_file():
        places = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(places, dict) or not all(
            isinstance(file, str) for file in places.values()
        ):
            raise ModelLoadError(f"{INDEX_FILE} has no weight_map.")
    elif (folder / SINGLE_FILE).is_file():
        places = {}
    else:
        raise ModelLoadError(
            f"it has neither {SINGLE_FILE} nor {INDEX_FILE}. Other formats are not read;"
            " save_pretrained of transformers writes this one."
        )
    tensors: dict[str, Stored] = {}
    files = sorted(set(places.values())) or [SINGLE_FILE]
    for file in files:
        if Path(file).name != file:
            raise ModelLoadError(f"{INDEX_FILE} leads out of its folder: {file}")
        tensors |= {
            name: tensor
            for name, tensor in _open_safetensors(folder / file).items()
            if not places or places.get(name) == file
        }
    if absent := sorted(places.keys() - tensors.keys()):
        raise ModelLoadError(
            f"{places[absent[0]]} lacks {_some(absent)}, which {INDEX_FILE} puts there."
        )
    return Checkpoint(
        settings, config, tensors, [folder / CONFIG_FILE, *(folder / file for file in files)]
    )


def _open_safetensors(path: Path) -> dict[str, Stored]:
    file = MappedFile(path)
    try:
        table = read_table(file)
    except SafetensorsError as error:
        raise ModelLoadError(f"{path.name} is damaged: {error}.") from None
    for name, entry in table.items():
        if entry.dtype not in FLOAT_TYPES and not name.endswith(IGNORED_SUFFIX):
            raise ModelLoadError(
                f"{name} is stored as {entry.dtype}; name the float checkpoint that it was made from."
            )
    return {
        name: Stored(entry.shape, entry.size, _safetensors_reader(file, entry))
        for name, entry in table.items()
    }


def _safetensors_reader(file: MappedFile, entry: Entry) -> Callable[[], Values]:
    return lambda: read_entry(file, entry)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelLoadError unless it is there and a JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path.name} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ModelLoadError(f"{path.name} is not JSON.") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path.name} is not a JSON object.")
    return value
