"""The optimisation: TRL's SFTTrainer over rows that are already tokens and labels.

Imports transformers and TRL at its top, so import it only after a backend's `activate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from trainer.backends.base import Backend, LoadedModel
from trainer.config import Recipe
from trainer.dataset import Row
from trainer.losses import collate
from trainer.machine import Machine
from trainer.progress import Bar
from trainer.record import HistoryPoint
from trainer.watch import Watcher


@dataclass(frozen=True, slots=True)
class FitResult:
    """What the optimisation did."""

    steps: int
    epochs: float
    seconds: float  # evaluations of the curve subset not counted
    tokens_seen: int  # real tokens, padding not counted
    history: tuple[HistoryPoint, ...]
    resolved_arguments: dict[str, Any]


def fit(
    recipe: Recipe,
    machine: Machine,
    backend: Backend,
    loaded: LoadedModel,
    tokenizer: Any,
    rows: Sequence[Row],
    output: Path,
    curve_loss: Callable[[], float],
    bar: Bar,
) -> FitResult:
    """Train the adapter in place.

    curve_loss: measures the held-out loss of the curve subset; called before the first step, every
    evaluation.eval_steps steps and after the last.
    """
    dataset = Dataset.from_dict(
        {
            "input_ids": [row.encoded.input_ids for row in rows],
            "labels": [row.encoded.labels for row in rows],
        }
    )
    arguments = SFTConfig(**sft_arguments(recipe, machine, backend, loaded.dtype, output))
    watcher = Watcher(recipe, curve_loss, bar)
    trainer = SFTTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        data_collator=partial(collate, pad_token_id=tokenizer.pad_token_id),
        callbacks=[watcher],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log where there is no tqdm bar
    # TRL stores a quantised base's adapter in bfloat16, which loses small updates, and which float16's loss scaling
    # cannot unscale at all.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    trainer.train()
    state = trainer.state
    return FitResult(
        steps=state.global_step,
        epochs=float(state.epoch or 0.0),
        seconds=watcher.train_seconds,
        tokens_seen=int(state.num_input_tokens_seen),
        history=watcher.history(),
        resolved_arguments=_plain(trainer.args.to_dict()),
    )


def sft_arguments(
    recipe: Recipe, machine: Machine, backend: Backend, dtype: str, output: Path
) -> dict[str, Any]:
    """Everything we depend on, said in full: defaults differ between versions, and unsloth changes them.

    Only names that TRL 1.14 to 1.16 and transformers 5.17 to 5.23 all have.
    """
    training = recipe.training
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "max_steps": training.max_steps,
        "learning_rate": training.learning_rate,
        # Below 1 transformers takes it for a share of the run, so 0 must be a whole number.
        "warmup_steps": int(training.warmup_steps),
        "lr_scheduler_type": training.lr_scheduler,
        "optim": training.optim,
        "weight_decay": training.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": training.max_grad_norm,
        "gradient_checkpointing": training.gradient_checkpointing,
        "seed": training.seed,
        "data_seed": training.seed,
        "train_sampling_strategy": "random",
        "bf16": machine.has_cuda and dtype == "bfloat16",
        "fp16": machine.has_cuda and dtype == "float16",
        "use_cpu": not machine.has_cuda,
        "loss_type": "nll",
        "average_tokens_across_devices": True,
        # Rows come as tokens and labels, within the length: nothing is left to prepare, cut or pack.
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "packing": False,
        "padding_free": False,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": machine.has_cuda,
        "logging_strategy": "steps",
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "eval_strategy": "no",  # the curve is ours: token-weighted, on a fixed subset
        "save_strategy": "no",
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        **backend.trainer_arguments(),
    }


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as JSON holds them, without secrets and without what is unset."""
    return {
        key: json.loads(json.dumps(value, default=str))
        for key, value in sorted(arguments.items())
        if value is not None and not key.endswith("_token")
    }
