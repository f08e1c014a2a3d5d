"""The ways to train that are compared. Each takes the same rows and returns what its steps took.

`ours-…` go through the trainer's own backends and fit; the others are what a user of those libraries would write.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.train_clock import StepClock, Steps
from trainer.config import Recipe
from trainer.dataset import Row
from trainer.template import ChatTemplate

GB = 1e9


@dataclass(frozen=True, slots=True)
class Work:
    """What a variant is given."""

    recipe: (
        Recipe  # the published one on this model and these rows, with as many steps as are wanted
    )
    template: ChatTemplate
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a variant took."""

    steps: Steps
    load_seconds: float
    first_step_seconds: float  # from the call of train to the end of the first step
    loaded_gb: float
    peak_reserved_gb: float
    peak_allocated_gb: float
    lora_parameters: int
    recompute: bool


def ours(
    *, backend: str, four_bit: bool = True, **training: Any
) -> Callable[[Work, StepClock], Taken]:
    """A variant of our own trainer: the recipe with `training` changed."""

    def run(work: Work, clock: StepClock) -> Taken:
        from rich.console import Console

        from trainer.backends.peft import PeftBackend
        from trainer.backends.unsloth import UnslothBackend
        from trainer.fit import fit
        from trainer.machine import MemoryMeter, this_machine
        from trainer.progress import Terminal

        update = {
            "model": {
                **work.recipe.model.model_dump(),
                "load_in_4bit": four_bit and torch.cuda.is_available(),
            }
        }
        update["training"] = {**work.recipe.training.model_dump(), "backend": backend, **training}
        recipe = Recipe.model_validate({**work.recipe.model_dump(), **update})
        machine = this_machine()
        chosen = UnslothBackend() if backend == "unsloth" else PeftBackend()
        began = time.perf_counter()
        loaded = chosen.load(recipe, machine)
        say = Terminal(Console(stderr=True))

        def train() -> None:
            with tempfile.TemporaryDirectory() as folder:
                fit(
                    recipe,
                    machine,
                    chosen,
                    loaded,
                    work.template.tokenizer,
                    work.rows,
                    Path(folder),
                    lambda: 0.0,
                    MemoryMeter(machine),
                    say.bar("", 1),
                    say,
                )

        return _take(began, loaded.model, train, clock, recipe.training.gradient_checkpointing)

    return run


def plain_trl(work: Work, clock: StepClock) -> Taken:
    """TRL, PEFT and bitsandbytes as their documentation puts them together: padded, four rows at a time."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    recipe, cuda = work.recipe, torch.cuda.is_available()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        recipe.model.base,
        dtype=torch.bfloat16 if cuda else torch.float32,
        device_map={"": 0} if cuda else None,
        quantization_config=quantization if cuda else None,
        attn_implementation="sdpa",
    )
    lora = LoraConfig(
        r=16, lora_alpha=16, target_modules=list(recipe.lora.target_modules), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, lora)
    arguments = SFTConfig(
        **_common(recipe),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=_tokens(work.rows),
        processing_class=work.template.tokenizer,
        data_collator=DataCollatorForSeq2Seq(work.template.tokenizer),
    )
    return _take(began, model, trainer.train, clock, recompute=True)


def unsloth_notebook(work: Work, clock: StepClock) -> Taken:
    """Unsloth as in its own Llama 3.2 notebook, with the published recipe's numbers."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer
    from unsloth.chat_templates import train_on_responses_only

    began = time.perf_counter()
    model, tokenizer = _unsloth_model(work.recipe)
    tokenizer.chat_template = work.template.text
    texts = [work.template.render(row.conversation.messages) for row in work.rows]
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer),
        args=SFTConfig(
            **_common(work.recipe),
            dataset_text_field="text",
            max_length=work.recipe.model.max_seq_length,
            packing=False,
        ),
    )
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    trainer = train_on_responses_only(
        trainer, instruction_part=header.format("user"), response_part=header.format("assistant")
    )
    return _take(began, model, trainer.train, clock, recompute=True)


def unsloth_padding_free(work: Work, clock: StepClock) -> Taken:
    """Unsloth with all rows of a step in one pass without padding."""
    from trl import SFTConfig, SFTTrainer

    began = time.perf_counter()
    model, tokenizer = _unsloth_model(work.recipe)
    training = work.recipe.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1}
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=_tokens(work.rows),
        args=SFTConfig(
            **{**_common(work.recipe), **sizes},
            padding_free=True,
            max_length=None,
        ),
    )
    return _take(began, model, trainer.train, clock, recompute=True)


_PACKED: dict[str, Any] = {"padding_free": "always", "optim": "adamw_torch_fused"}

# By engine: one process each, since unsloth patches the others' libraries.
VARIANTS: Mapping[str, Mapping[str, Callable[[Work, StepClock], Taken]]] = {
    "plain": {
        "ours-recommended": ours(backend="peft", **_PACKED),
        "trl": plain_trl,
        "ours-bfloat16": ours(backend="peft", four_bit=False, **_PACKED),
        "ours-no-graphs": ours(backend="peft", cuda_graphs=False, **_PACKED),
        "ours-no-recompute": ours(backend="peft", gradient_checkpointing=False, **_PACKED),
    },
    "unsloth": {
        "unsloth-notebook": unsloth_notebook,
        "ours-published": ours(backend="unsloth"),
        "unsloth-padding-free": unsloth_padding_free,
        "ours-published-bfloat16": ours(backend="unsloth", four_bit=False),
    },
}


def _unsloth_model(recipe: Recipe) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=recipe.model.base,
        max_seq_length=recipe.model.max_seq_length,
        dtype=None,
        load_in_4bit=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        target_modules=list(recipe.lora.target_modules),
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=recipe.training.seed,
    )
    return model, tokenizer


def _common(recipe: Recipe) -> dict[str, Any]:
    training, cuda = recipe.training, torch.cuda.is_available()
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "max_steps": training.max_steps,
        "learning_rate": training.learning_rate,
        "warmup_steps": training.warmup_steps,
        "optim": training.optim,
        "bf16": cuda,
        "use_cpu": not cuda,
        "seed": training.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "non_padding",
    }


def _tokens(rows: Sequence[Row]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [row.encoded.input_ids for row in rows],
            "labels": [row.encoded.labels for row in rows],
        }
    )


def _take(
    began: float, model: Any, train: Callable[[], Any], clock: StepClock, recompute: bool
) -> Taken:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    loaded = time.perf_counter()
    loaded_gb = torch.cuda.memory_reserved() / GB if cuda else 0.0
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    train()
    return Taken(
        steps=clock.steps,
        load_seconds=loaded - began,
        first_step_seconds=clock.first_ended - loaded,
        loaded_gb=loaded_gb,
        peak_reserved_gb=torch.cuda.max_memory_reserved() / GB if cuda else 0.0,
        peak_allocated_gb=torch.cuda.max_memory_allocated() / GB if cuda else 0.0,
        lora_parameters=trainable,
        recompute=recompute,
    )


def forget() -> None:
    """Free what the last variant held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
