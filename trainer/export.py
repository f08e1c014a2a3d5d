"""Takes an adapter out of here, so that nobody is locked in: merged into its base for transformers, or as GGUF.

Merging is always into float weights, never into a quantised copy, whose rounding would swallow the adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.adapters import FoundAdapter
from trainer.errors import ConfigError
from trainer.progress import Reporter


def export(
    adapter: FoundAdapter,
    base: str,
    reporter: Reporter,
    *,
    merged: Path | None = None,
    gguf: Path | None = None,
    lora_gguf: Path | None = None,
    dtype: str = "float32",
) -> None:
    """Write what is asked for. base: folder or hub id of the float base; dtype: of the merged weights.

    Raises ConfigError if a target exists, or if the base is not the one the adapter belongs to.
    """
    for target in (merged, gguf, lora_gguf):
        if target is not None and target.exists():
            raise ConfigError(f"{target} exists already; name another.")
    _check_base(adapter, base)
    if lora_gguf is not None:
        _write_lora(adapter, base, lora_gguf)
        reporter.say(f"LoRA as GGUF: {lora_gguf}")
    if merged is None and gguf is None:
        return
    reporter.say(f"Merging {adapter.name} into {base}")
    model, tokenizer = _merge(adapter, base)
    if gguf is not None:
        from trainer.gguf_file import write_model  # noqa: PLC0415 (its package is not needed otherwise)

        staging = _staging(gguf)
        stops = adapter.manifest.get("stop_token_ids") or []
        stop = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else stops[0]
        write_model(staging, adapter.name, model.config, _arrays(model), tokenizer, stop, dtype)
        staging.rename(gguf)
        reporter.say(f"GGUF: {gguf}")
    if merged is not None:
        _write_merged(model, tokenizer, merged, dtype)
        reporter.say(f"Merged model: {merged}")


def _check_base(adapter: FoundAdapter, base: str) -> None:
    known = adapter.manifest.get("base", {}).get("weights_digest")
    if known is None or not Path(base).is_dir():
        return
    from trainer.weights import weights_digest  # noqa: PLC0415 (imports torch)

    if (found := weights_digest(Path(base))) != known:
        raise ConfigError(
            f"{base} is not the base that {adapter.name} was trained for ({adapter.base_id}): its weights are others "
            f"({found[:19]}… instead of {known[:19]}…). Give the right one with --base."
        )


def _merge(adapter: FoundAdapter, base: str) -> tuple[Any, Any]:
    import torch  # noqa: PLC0415
    from peft import PeftModel  # noqa: PLC0415 (seconds to import)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The base {base} could not be loaded: {str(error).splitlines()[0]} Give a folder or a hub id within "
            "reach with --base."
        ) from error
    tuned = PeftModel.from_pretrained(model, adapter.folder)
    # safe_merge: refuses weights that are no numbers.
    return tuned.merge_and_unload(safe_merge=True), AutoTokenizer.from_pretrained(adapter.folder)


def _write_merged(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    import torch  # noqa: PLC0415

    staging = _staging(folder)
    model.to(getattr(torch, dtype)).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    staging.rename(folder)


def _arrays(model: Any) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():  # a tied output layer appears once
        yield name, parameter.detach().numpy()


def _write_lora(adapter: FoundAdapter, base: str, path: Path) -> None:
    from safetensors.numpy import load_file  # noqa: PLC0415
    from transformers import AutoConfig  # noqa: PLC0415

    from trainer.gguf_file import write_lora  # noqa: PLC0415

    staging = _staging(path)
    tensors = load_file(adapter.folder / "adapter_model.safetensors")
    write_lora(staging, adapter.name, AutoConfig.from_pretrained(base), adapter.config, tensors)
    staging.rename(path)


def _staging(target: Path) -> Path:
    """Where it is written before it gets its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".tmp-{target.name}")
    if staging.is_dir():
        shutil.rmtree(staging)
    staging.unlink(missing_ok=True)
    return staging
