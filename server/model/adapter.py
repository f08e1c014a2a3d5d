"""Reads LoRA weights from PEFT's two files. What cannot be applied exactly is refused with the reason.

adapter_config.json is parsed here, against a closed list, and never by PEFT: its loader imports modules and runs
regular expressions that such a file may name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from server.errors import AdapterError
from server.model.config import DecoderConfig
from server.model.decoder import ATTENTION, MLP
from server.model.lora import AdapterWeights, LoraPair

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

HONOURED = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "target_modules"})
# Ways to begin that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change its weights,
# so that the adapter fits a base that is not ours.
HARMLESS_INITS = (True, "gaussian", "orthogonal", "eva", "mica")
# Without any effect on a trained adapter's output. Any other key must be empty, false or absent.
WITHOUT_EFFECT = frozenset(
    {
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)

_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(\d{1,4})\.(self_attn|mlp)\.([a-z]+_proj)\.lora_([AB])\.weight"
)


def read_adapter(folder: Path, key: str, config: DecoderConfig) -> AdapterWeights:
    """Weights in float32, every tensor bound to a layer of the base. Raises AdapterError."""
    settings = _read_config(folder / CONFIG_FILE)
    rank, alpha = settings["r"], settings["lora_alpha"]
    scaling = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    tensors = _read_tensors(folder / WEIGHTS_FILE, config)
    _check_targets(settings["target_modules"], tensors)
    pairs = {}
    for layer, module, side in tensors:
        if side == "B":
            if (layer, module, "A") not in tensors:
                raise AdapterError(f"layer {layer} {module} has a B matrix and no A")
            continue
        if (layer, module, "B") not in tensors:
            raise AdapterError(f"layer {layer} {module} has an A matrix and no B")
        a, b = tensors[layer, module, "A"], tensors[layer, module, "B"]
        if a.shape[0] != rank or b.shape[1] != rank:
            raise AdapterError(
                f"layer {layer} {module} has rank {a.shape[0]}/{b.shape[1]}; {CONFIG_FILE} says {rank}"
            )
        pairs[layer, module] = LoraPair(a, b, scaling)
    return AdapterWeights(key, pairs)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise AdapterError(f"{CONFIG_FILE} is missing or not JSON") from None
    if not isinstance(settings, dict):
        raise AdapterError(f"{CONFIG_FILE} is not a JSON object")
    if settings.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type {settings.get('peft_type')!r} is not served, only LORA")
    for name, value in settings.items():
        if (
            name in HONOURED
            or name in WITHOUT_EFFECT
            or not value
            or (name, value) == ("bias", "none")
            or (name == "init_lora_weights" and value in HARMLESS_INITS)
        ):
            continue
        raise AdapterError(f"{CONFIG_FILE} sets {name}={value!r}, which this server does not apply")
    for name in ("r", "lora_alpha"):
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 65536:
            raise AdapterError(f"{CONFIG_FILE} has {name}={value!r}")
    targets = settings.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        # A string would be a regular expression, which PEFT runs over all names of the model.
        raise AdapterError(f"target_modules must be a list of names; it is {targets!r}")
    return settings


def _check_targets(targets: list[str], tensors: Mapping[tuple[int, str, str], Tensor]) -> None:
    """Every target has tensors and every tensor a target; PEFT matches a name by its end, at a dot."""
    paths = {
        f".model.layers.{layer}.{'mlp' if module in MLP else 'self_attn'}.{module}"
        for layer, module, _ in tensors
    }
    for target in targets:
        if not any(path.endswith(f".{target}") for path in paths):
            raise AdapterError(f"target_modules names {target}, which has no tensors")
    for path in paths:
        if not any(path.endswith(f".{target}") for target in targets):
            raise AdapterError(f"{path[1:]} has tensors, but target_modules does not name it")


def _read_tensors(path: Path, config: DecoderConfig) -> dict[tuple[int, str, str], Tensor]:
    sizes = _sizes(config)
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict: it cannot be iterated)
                layer, module, side = _bind(name, config)
                tensor = file.get_tensor(name)
                in_size, out_size = sizes[module]
                width = tensor.shape[-1 if side == "A" else 0] if tensor.dim() == 2 else None
                if width != (in_size if side == "A" else out_size):
                    raise AdapterError(
                        f"{name} has shape {tuple(tensor.shape)}, which does not fit the base"
                    )
                if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                    raise AdapterError(f"{name} holds values that are not finite numbers")
                tensors[layer, module, side] = tensor.to(torch.float32)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{WEIGHTS_FILE} is missing or damaged ({error})") from None
    if not tensors:
        raise AdapterError(f"{WEIGHTS_FILE} holds no tensors")
    return tensors


def _bind(name: str, config: DecoderConfig) -> tuple[int, str, str]:
    match = _NAME.fullmatch(name)
    if match is not None:
        layer, block, module, side = int(match[1]), match[2], match[3], match[4]
        expected = {"self_attn": ATTENTION, "mlp": MLP}[block]
        if layer < config.num_layers and module in expected:
            return layer, module, side
    raise AdapterError(f"the tensor {name} belongs to nothing in the base")


def _sizes(c: DecoderConfig) -> dict[str, tuple[int, int]]:
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
