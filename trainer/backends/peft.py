"""The plain backend: transformers and PEFT, on a CPU or a CUDA GPU."""

from __future__ import annotations

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
from trainer.padding_free import wants_padding_free


class PeftBackend:
    """transformers loads, PEFT adapts."""

    name = "peft"

    def activate(self) -> None:
        """Nothing has to come first."""

    def load(self, recipe: Recipe, machine: Machine) -> LoadedModel:
        """The base with a new adapter. Raises ConfigError if the base cannot be loaded or has not the layers."""
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 (seconds to import)
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed  # noqa: PLC0415

        dtype = compute_dtype(recipe.model.dtype, machine)
        quantization = None
        if recipe.model.load_in_4bit:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, dtype),
            )
        base = recipe.model.base
        try:
            model = AutoModelForCausalLM.from_pretrained(
                base,
                revision=recipe.model.revision,
                dtype=getattr(torch, dtype),
                device_map={"": machine.index} if machine.has_cuda else None,
                quantization_config=quantization,
                attn_implementation="sdpa",
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The base model {base} could not be loaded: {str(error).splitlines()[0]} "
                "Give a folder or a hub id within reach with --set model.base=…."
            ) from error
        model.config.use_cache = False
        config = model.config
        set_seed(recipe.training.seed)  # the adapter's random start
        try:
            adapted = get_peft_model(
                model,
                LoraConfig(
                    r=recipe.lora.r,
                    lora_alpha=recipe.lora.alpha,
                    lora_dropout=recipe.lora.dropout,
                    use_rslora=recipe.lora.rslora,
                    target_modules=list(recipe.lora.target_modules),
                    bias="none",
                    task_type="CAUSAL_LM",
                ),
            )
        except ValueError as error:
            raise ConfigError(
                f"lora.target_modules does not fit {base}: {str(error).splitlines()[0]}"
            ) from error
        return LoadedModel(
            model=adapted,
            dtype=dtype,
            architecture=type(model).__name__,
            trained_on_id=recipe.base_id,
            trained_on_revision=getattr(config, "_commit_hash", None),
            quantization="nf4" if quantization else None,
            float_folder=_folder(base, getattr(config, "_commit_hash", None)),
            padding_free=wants_padding_free(recipe, machine),
        )

    def trainer_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Checkpointing as PyTorch recommends it; without dropout there is no random state to restore."""
        kept = {"use_reentrant": False, "preserve_rng_state": recipe.lora.dropout > 0}
        return {"gradient_checkpointing_kwargs": kept}

    def logits(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, positions: Tensor
    ) -> Tensor:
        """Only the positions asked for go through the output layer: all of them would fill a small card."""
        # Past the trainer's wrapper, which would make a copy of them in float32.
        logits: Tensor = model.get_base_model()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            logits_to_keep=positions,
            use_cache=False,
        ).logits
        return logits

    @contextmanager
    def generating(self, model: Any) -> Iterator[None]:
        """Evaluation mode with the cache on."""
        was_training = model.training
        model.eval()
        model.config.use_cache = True
        try:
            yield
        finally:
            model.config.use_cache = False
            model.train(was_training)


def _folder(base: str, revision: str | None) -> Path | None:
    """Where the checkpoint just loaded lies: the folder itself, or the hub's snapshot in the cache."""
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (a hub base only)
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(base, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
