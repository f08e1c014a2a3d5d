"""The CUDA backend: unsloth's patched models, QLoRA on one GPU. The only file that imports unsloth.

unsloth patches transformers, TRL and PEFT when it is imported, so `activate` must run before any of them is.
It writes `unsloth_compiled_cache/` into the working folder, which must be writable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.backends.base import LoadedModel
from trainer.config import Recipe
from trainer.errors import ConfigError
from trainer.machine import Machine, compute_dtype


class UnslothBackend:
    """FastLanguageModel loads, adapts and patches."""

    name = "unsloth"

    def activate(self) -> None:
        """Import unsloth first. Raises ConfigError if it does not find a GPU it can use."""
        # Without a usable GPU it would train on the CPU, for days; that is what the peft backend's recipes are for.
        os.environ.setdefault("UNSLOTH_DISABLE_CPU_FALLBACK", "1")
        late = [name for name in ("transformers", "trl", "peft") if name in sys.modules]
        if late and "unsloth" not in sys.modules:
            raise ConfigError(
                f"The unsloth backend must be activated before {', '.join(late)} is imported; start a new process."
            )
        try:
            import unsloth  # noqa: F401, PLC0415 (patches on import)
        except (ImportError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(
                f"unsloth cannot be used here: {(str(error).splitlines() or ['?'])[0]} "
                "Set training.backend=peft to train without it."
            ) from error

    def load(self, recipe: Recipe, machine: Machine) -> LoadedModel:
        """The base with a new adapter. Raises ConfigError if the base cannot be loaded."""
        from unsloth import FastLanguageModel  # noqa: PLC0415

        dtype = compute_dtype(recipe.model.dtype, machine)
        checkpointing = "unsloth" if recipe.training.gradient_checkpointing else False
        base = recipe.model.base
        try:
            model, _ = FastLanguageModel.from_pretrained(
                model_name=base,
                revision=recipe.model.revision,
                max_seq_length=recipe.model.max_seq_length,
                dtype=getattr(torch, dtype),
                load_in_4bit=recipe.model.load_in_4bit,
                use_gradient_checkpointing=checkpointing,
                random_state=recipe.training.seed,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The base model {base} could not be loaded: {str(error).splitlines()[0]} "
                "Give a folder or a hub id within reach with --set model.base=…."
            ) from error
        config = model.config
        architecture = type(model).__name__
        # unsloth swaps a hub id for a repository that is already in 4 bits; this is what was really loaded.
        trained_on = config._name_or_path
        adapted = FastLanguageModel.get_peft_model(
            model,
            r=recipe.lora.r,
            lora_alpha=recipe.lora.alpha,
            lora_dropout=recipe.lora.dropout,
            use_rslora=recipe.lora.rslora,
            target_modules=list(recipe.lora.target_modules),
            bias="none",
            use_gradient_checkpointing=checkpointing,
            random_state=recipe.training.seed,
            max_seq_length=recipe.model.max_seq_length,
        )
        is_float_folder = Path(base).is_dir()
        return LoadedModel(
            model=adapted,
            dtype=dtype,
            architecture=architecture,
            trained_on_id=recipe.base_id if is_float_folder else trained_on,
            trained_on_revision=getattr(config, "_commit_hash", None),
            quantization="nf4" if recipe.model.load_in_4bit else None,
            float_folder=Path(base) if is_float_folder else None,
        )

    def trainer_arguments(self, recipe: Recipe) -> dict[str, Any]:  # noqa: ARG002 (the interface's)
        """None: unsloth sets its own checkpointing up again when training starts."""
        return {}

    def logits(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, positions: Tensor
    ) -> Tensor:
        """unsloth's forward has no choice of positions, and returns logits only without labels."""
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[:, positions]

    @contextmanager
    def generating(self, model: Any) -> Iterator[None]:
        """unsloth's inference mode, and back."""
        from unsloth import FastLanguageModel  # noqa: PLC0415

        FastLanguageModel.for_inference(model)
        try:
            yield
        finally:
            FastLanguageModel.for_training(model)
