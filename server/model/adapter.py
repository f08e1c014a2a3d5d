"""Reads LoRA weights from PEFT's two files. What cannot be applied exactly is refused with the reason."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.errors import AdapterError
from server.model.config import DecoderConfig
from server.model.lora import AdapterWeights, LoraPair
from server.model.peft_config import CONFIG_FILE, LoraSettings, read_settings
from server.model.safetensors_file import (
    FLOAT_TYPES,
    BytesInFile,
    BytesInMemory,
    Entry,
    SafetensorsError,
    bfloat16_to_float32,
    read_entry,
    read_table,
)

WEIGHTS_FILE = "adapter_model.safetensors"
# The seven linear layers of a block, as adapters name them.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(\d{1,4})\.(self_attn|mlp)\.([a-z]+_proj)\.lora_([AB])\.weight"
)
_Matrix = NDArray[np.float32]


def read_adapter(
    folder: Path,
    key: str,
    config: DecoderConfig,
    settings: LoraSettings | None = None,
    sha256: str | None = None,
) -> AdapterWeights:
    """Weights in float32, every tensor bound to a layer of the base. Raises AdapterError.

    settings: of the folder's configuration, if that has been read. sha256: of the weights' file, where that is known:
    of the very bytes that are then used.
    """
    settings = settings or read_settings(folder / CONFIG_FILE)
    tensors = _read_tensors(folder / WEIGHTS_FILE, config, sha256)
    _check_targets(settings, {(layer, module) for layer, module, _ in tensors}, config)
    pairs = {}
    for layer, module, side in sorted(tensors):
        if side == "B":
            if (layer, module, "A") not in tensors:
                raise AdapterError(f"layer {layer} {module} has a B matrix and no A")
            continue
        if (layer, module, "B") not in tensors:
            raise AdapterError(f"layer {layer} {module} has an A matrix and no B")
        a, b = tensors[layer, module, "A"], tensors[layer, module, "B"]
        path = module_path(layer, module)
        rank = settings.rank_of(path)
        if a.shape[0] != rank or b.shape[1] != rank:
            raise AdapterError(
                f"layer {layer} {module} has rank {a.shape[0]}/{b.shape[1]}; {CONFIG_FILE} says {rank}"
            )
        pairs[layer, module] = LoraPair(a, b, settings.scaling_of(path))
    return AdapterWeights(key, _digest(pairs), pairs)


def module_path(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{'mlp' if module in MLP else 'self_attn'}.{module}"


def read_ranks(
    folder: Path, config: DecoderConfig, settings: LoraSettings
) -> dict[tuple[int, str], int]:
    """The rank of every module, from the file's header alone: all that can be told without reading the values.

    Raises AdapterError for names, shapes and types that do not fit the base.
    """
    path = folder / WEIGHTS_FILE
    try:
        with path.open("rb") as file:
            table = read_table(BytesInFile(file))
    except (OSError, SafetensorsError) as error:
        raise AdapterError(f"{WEIGHTS_FILE} is missing or damaged ({error})") from None
    bound = {_bind(name, config): (name, entry) for name, entry in table.items()}
    for place, (name, entry) in bound.items():
        _check_entry(place, name, entry, config)
    _check_targets(settings, {(layer, module) for layer, module, _ in bound}, config)
    return {
        (layer, module): entry.shape[0]
        for (layer, module, side), (_, entry) in bound.items()
        if side == "A"
    }


def _digest(pairs: Mapping[tuple[int, str], LoraPair]) -> str:
    digest = hashlib.sha256()
    for (layer, module), pair in sorted(pairs.items()):
        shapes = f"{layer} {module} {pair.a.shape} {pair.b.shape} {pair.scaling.hex()}"
        digest.update(shapes.encode() + b"\0")
        digest.update(pair.a.data)
        digest.update(pair.b.data)
    return digest.hexdigest()


def _check_targets(
    settings: LoraSettings, places: Set[tuple[int, str]], config: DecoderConfig
) -> None:
    """The modules with tensors are those that PEFT would adapt, no more and no fewer."""
    known = [
        module_path(layer, m) for layer in range(config.num_layers) for m in (*ATTENTION, *MLP)
    ]
    for target in settings.targets:
        if not any(path == target or path.endswith(f".{target}") for path in known):
            raise AdapterError(
                f"target_modules names {target}, which this server puts no adapter on"
            )
    present = {module_path(layer, module) for layer, module in places}
    for path in known:
        if settings.adapts(path) and path not in present:
            raise AdapterError(f"{CONFIG_FILE} names {path}, which has no tensors")
        if path in present and not settings.adapts(path):
            raise AdapterError(f"{path} has tensors, but {CONFIG_FILE} does not name it")


def _read_tensors(
    path: Path, config: DecoderConfig, sha256: str | None
) -> dict[tuple[int, str, str], _Matrix]:
    tensors = {}
    try:
        # Read and not mapped: the file is on a volume that others write to, and a map of a file cut short kills.
        source = BytesInMemory(path.read_bytes())
        table = read_table(source)
    except (OSError, SafetensorsError) as error:
        raise AdapterError(f"{WEIGHTS_FILE} is missing or damaged ({error})") from None
    if sha256 is not None and hashlib.sha256(source.data).hexdigest() != sha256:
        raise AdapterError(
            f"{WEIGHTS_FILE} is not the file that was published: its digest differs", "digest"
        )
    for name, entry in table.items():
        place = _bind(name, config)
        _check_entry(place, name, entry, config)
        tensors[place] = _values(source, name, entry)
    if not tensors:
        raise AdapterError(f"{WEIGHTS_FILE} holds no tensors")
    return tensors


def _check_entry(
    place: tuple[int, str, str], name: str, entry: Entry, config: DecoderConfig
) -> None:
    _, module, side = place
    in_size, out_size = module_sizes(config)[module]
    width = entry.shape[-1 if side == "A" else 0] if len(entry.shape) == 2 else None
    if width != (in_size if side == "A" else out_size):
        raise AdapterError(f"{name} has shape {entry.shape}, which does not fit the base")
    if entry.dtype not in FLOAT_TYPES:
        raise AdapterError(f"{name} is stored as {entry.dtype}, which is no float type")


def _values(source: BytesInMemory, name: str, entry: Entry) -> _Matrix:
    stored = read_entry(source, entry)
    # A copy in any case: a view would keep the whole file in memory, which runners pack for themselves.
    values = (
        bfloat16_to_float32(stored) if stored.dtype == np.uint16 else np.array(stored, np.float32)
    )
    if not np.isfinite(values).all():
        raise AdapterError(f"{name} holds values that are not finite numbers")
    return values


def _bind(name: str, config: DecoderConfig) -> tuple[int, str, str]:
    match = _NAME.fullmatch(name)
    if match is not None:
        layer, block, module, side = int(match[1]), match[2], match[3], match[4]
        expected = {"self_attn": ATTENTION, "mlp": MLP}[block]
        if layer < config.num_layers and module in expected:
            return layer, module, side
    raise AdapterError(f"the tensor {name} belongs to nothing in the base")


def module_sizes(c: DecoderConfig) -> dict[str, tuple[int, int]]:
    """module -> (in, out)."""
    q, kv, hidden = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.hidden_size
    return {
        "q_proj": (hidden, q),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (q, hidden),
        "gate_proj": (hidden, c.intermediate_size),
        "up_proj": (hidden, c.intermediate_size),
        "down_proj": (c.intermediate_size, hidden),
    }
