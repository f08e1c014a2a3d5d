"""Builds manifest.json, the adapter's passport on the volume (docs/contracts.md, section 1).

It reads the adapter to say what is in it, and knows nothing about where or how the version is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trainer.durable import Written
from trainer.probe import manifest_entry
from trainer.record import RunRecord

FORMAT = "lorachat-adapter/1"
CHAT_TEMPLATE = "chat_template.jinja"
_LORA_TENSOR = re.compile(r"\.(?P<module>[^.]+)\.lora_[AB]\.")


class AdapterError(Exception):
    """The adapter folder does not hold a usable LoRA adapter; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """The manifest's `adapter` entry. parameters: numbers stored in the adapter's tensors."""

    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    parameters: int


def read_adapter(config: Mapping[str, Any], weights: Path) -> AdapterFacts:
    """What PEFT's configuration and tensors say the adapter is.

    target_modules come from the tensors' names, because the configuration may hold a pattern
    instead of a list. Raises AdapterError for another method than LoRA, unreadable tensors, none at
    all, or values not finite.
    """
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"adapter_config.json says peft_type {config.get('peft_type')!r}: only LORA adapters can be served."
        )
    modules: set[str] = set()
    parameters = 0
    try:
        with safe_open(weights, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118  (the reader is no mapping)
                values = reader.get_tensor(name)
                if not bool(torch.isfinite(values).all()):
                    raise AdapterError(
                        f"{name} holds values that are not finite: the training diverged; "
                        "lower the learning rate and train again."
                    )
                parameters += values.numel()
                if found := _LORA_TENSOR.search(name):
                    modules.add(found["module"])
    except SafetensorError as error:
        raise AdapterError(
            f"{weights.name} is not a safetensors file: {error}; train again."
        ) from error
    if not modules:
        raise AdapterError(f"{weights.name} holds no LoRA tensors; train again.")
    try:
        return AdapterFacts(
            rank=int(config["r"]),
            alpha=config["lora_alpha"],
            rslora=bool(config.get("use_rslora", False)),
            target_modules=tuple(sorted(modules)),
            parameters=parameters,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            "adapter_config.json lacks r or lora_alpha; save the adapter with PEFT."
        ) from error


def build_manifest(
    record: RunRecord,
    *,
    version: str,
    created: datetime,
    adapter: AdapterFacts,
    files: Mapping[str, Written],
) -> dict[str, Any]:
    """The manifest of `version`. `files` holds every file of the version by its relative path."""
    return {
        "format": FORMAT,
        "name": record.name,
        "version": version,
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "base": {
            "id": record.base.id,
            "revision": record.base.revision,
            "architecture": record.base.architecture,
            "weights_digest": record.base.weights_digest,
            "trained_on": {
                "id": record.base.trained_on_id,
                "revision": record.base.trained_on_revision,
                "quantization": record.base.quantization,
            },
        },
        "chat_template": {"file": CHAT_TEMPLATE, "sha256": files[CHAT_TEMPLATE].sha256},
        "stop_token_ids": sorted(set(record.stop_token_ids)),
        "adapter": asdict(adapter),
        "files": {path: asdict(files[path]) for path in sorted(files)},
        "recipe": record.recipe,
        "metrics": _metrics(record),
        "versions": record.versions,
        "probe": manifest_entry(record.probe),
    }


def _metrics(record: RunRecord) -> dict[str, Any]:
    """The figures of the run. Losses: token-weighted, in nats. Memory: GB of 1e9 bytes."""
    return {
        "held_out_loss": {
            loss.source: {
                "base": loss.base,
                "tuned": loss.tuned,
                "rows": loss.rows,
                "tokens": loss.tokens,
            }
            for loss in record.losses
        },
        "final_train_loss": record.final_train_loss,
        "steps": record.steps,
        "epochs": record.epochs,
        "wall_seconds": record.wall_seconds,
        "train_seconds": record.train_seconds,
        "train_tokens_seen": record.train_tokens_seen,
        "tokens_per_second": record.tokens_per_second,
        "peak_memory": {
            "device": record.memory.device,
            "reserved_gb": record.memory.peak_reserved_gb,
            "total_gb": record.memory.total_gb,
        },
        "warnings": list(record.warnings),
    }
