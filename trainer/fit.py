"""The optimisation: TRL's trainer over rows that are already tokens and labels, from wherever it was left.

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
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, Trainer
from trl import SFTConfig, SFTTrainer

from trainer.backends.base import Backend, LoadedModel
from trainer.best import BestAdapter
from trainer.checkpoints import newest_sealed, step_of
from trainer.config import Recipe
from trainer.dataset import Row
from trainer.interruption import StopRequest
from trainer.losses import collate
from trainer.machine import Machine, MemoryMeter
from trainer.order import row_order
from trainer.packed.layout import collate_flat
from trainer.processes import divide_step, process_count
from trainer.progress import Bar, Reporter
from trainer.record import HistoryPoint
from trainer.trackers import EVENTS, keep_events
from trainer.watch import Watcher


@dataclass(frozen=True, slots=True)
class FitResult:
    """What the optimisation did, all its parts together if it was interrupted."""

    steps: int
    epochs: float
    seconds: float  # evaluations of the curve subset not counted
    tokens_seen: int  # real tokens, padding not counted
    history: tuple[HistoryPoint, ...]
    resolved_arguments: dict[str, Any]
    is_complete: bool  # False: SIGTERM ended it, with a checkpoint


def fit(
    recipe: Recipe,
    machine: Machine,
    backend: Backend,
    loaded: LoadedModel,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: Path,
    curve_loss: Callable[[], float],
    memory: MemoryMeter,
    bar: Bar,
    say: Reporter,
) -> FitResult:
    """Train the adapter in place, from the newest whole checkpoint in `folder` if there is one.

    curve_loss: measures the held-out loss of the curve subset; called before the first step, every
    evaluation.eval_steps steps and after the last.
    """
    checkpoint = newest_sealed(folder)
    training = recipe.training
    step_rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    dataset = Dataset.from_dict(
        {
            "input_ids": [row.encoded.input_ids for row in rows],
            "labels": [row.encoded.labels for row in rows],
        }
    ).select(row_order(len(rows), training.max_steps * step_rows, training.seed))
    with StopRequest() as stop:
        watcher = Watcher(
            recipe, curve_loss, bar, stop, memory, steps_per_epoch=len(rows) / step_rows
        )
        trainer = _trainer(
            recipe, machine, backend, loaded, tokenizer, dataset, folder, watcher, say
        )
        if training.report_to:
            keep_events(trainer, folder.parent / EVENTS)
            # TRL's own would add its means of the steps so far, and begin them anew.
            watcher.log = partial(Trainer.log, trainer)
        best = BestAdapter(trainer.model, folder) if recipe.training.keep == "best" else None
        watcher.on_best = best.save if best else None
        if checkpoint is not None:
            watcher.resume(checkpoint)
        if checkpoint is not None and (
            watcher.stopped_early or step_of(checkpoint) >= recipe.training.max_steps
        ):
            # The library would do one step more before it notices that none is left.
            weights = load_file(checkpoint / "adapter_model.safetensors")
            set_peft_model_state_dict(trainer.model, weights)
            trainer.state = trainer.state.load_from_json(str(checkpoint / "trainer_state.json"))
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    is_complete = watcher.stopped_early or state.global_step >= recipe.training.max_steps
    if best is not None and is_complete:
        best.load()
    return FitResult(
        steps=state.global_step,
        epochs=state.global_step * step_rows / len(rows),
        seconds=watcher.train_seconds,
        tokens_seen=int(state.num_input_tokens_seen),
        history=watcher.history(),
        resolved_arguments=_plain(trainer.args.to_dict()),
        is_complete=is_complete,
    )


def _trainer(
    recipe: Recipe,
    machine: Machine,
    backend: Backend,
    loaded: LoadedModel,
    tokenizer: Any,
    dataset: Dataset,
    folder: Path,
    watcher: Watcher,
    say: Reporter,
) -> SFTTrainer:
    common = {
        "model": loaded.model,
        "args": SFTConfig(**sft_arguments(recipe, machine, backend, loaded, folder)),
        "train_dataset": dataset,
        "processing_class": tokenizer,
        "callbacks": [watcher],
    }
    if loaded.padding_free:
        from trainer.packed.train import PackedTrainer  # noqa: PLC0415 (its attention is not in every torch)

        trainer = PackedTrainer(
            **common,
            data_collator=collate_flat,
            max_pass_tokens=recipe.training.max_pass_tokens,
            max_row_tokens=recipe.model.max_seq_length,
            # Random numbers of dropout, and the loss scale of float16, change from step to step.
            use_graphs=recipe.training.cuda_graphs
            and machine.has_cuda
            and loaded.dtype == "bfloat16"
            and recipe.lora.dropout == 0,
            reporter=say,
        )
    else:
        trainer = SFTTrainer(
            **common, data_collator=partial(collate, pad_token_id=tokenizer.pad_token_id)
        )
    trainer.remove_callback(PrinterCallback)  # it prints every log where there is no tqdm bar
    # TRL stores a quantised base's adapter in bfloat16, which loses small updates, and which float16's loss scaling
    # cannot unscale at all.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return trainer


def sft_arguments(
    recipe: Recipe, machine: Machine, backend: Backend, loaded: LoadedModel, folder: Path
) -> dict[str, Any]:
    """Everything we depend on, said in full: defaults differ between versions, and unsloth changes them.

    Only names that TRL 1.14 to 1.16 and transformers 5.17 to 5.23 all have.
    """
    training = recipe.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    micro, accumulation = divide_step(rows, training.per_device_train_batch_size, process_count())
    if loaded.padding_free:  # the trainer divides the step by tokens, not by rows
        micro, accumulation = micro * accumulation, 1
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
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
        "train_sampling_strategy": "sequential",  # row_order has shuffled
        "bf16": machine.has_cuda and loaded.dtype == "bfloat16",
        "fp16": machine.has_cuda and loaded.dtype == "float16",
        "use_cpu": not machine.has_cuda,
        "loss_type": "nll",
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
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
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        # The one before is kept until the newer is sealed.
        "save_total_limit": 2,
        "report_to": list(training.report_to) or "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        **backend.trainer_arguments(recipe),
    }


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as JSON holds them, without secrets and without what is unset."""
    return {
        key: json.loads(json.dumps(value, default=str))
        for key, value in sorted(arguments.items())
        if value is not None and not key.endswith("_token")
    }
