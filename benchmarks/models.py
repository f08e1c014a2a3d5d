"""Makes the models and adapters that are measured, once: `python -m benchmarks.models --help`.

Two models whose float32 weights are exactly representable in bfloat16, as those of most published checkpoints are:
SmolLM2-135M with its weights rounded, and random weights in the shape of Llama-3.2-1B. Adapters for each lie in the
volume format of docs/contracts.md, so that the server serves them; PEFT loads the same folders.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.adapters import write_adapters

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUTPUT = ROOT / ".cache" / "benchmarks"
SMALL, LARGE = "smollm2-135m-bf16", "llama-3.2-1b-shape-bf16"
ADAPTERS = 8

# Llama-3.2-1B's configuration, but for the stop token, which is the tokenizer's.
LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def write_rounded(source: Path, folder: Path) -> None:
    """The model of `source` with every weight rounded to bfloat16 (nearest, ties to even) and stored so."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def write_random_1b(source: Path, folder: Path) -> None:
    """Random bfloat16 weights in Llama-3.2-1B's shape, with the tokenizer of `source` and its vocabulary padded.

    Embedding rows of tokens that are not plain words are small, so that they are never the likeliest next token:
    answers are words, and never end early. Projections into the residual stream are large, so that the next token
    depends on the context more than on the last token.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(source)
    eos = tokenizer.eos_token_id
    config = LlamaConfig(
        **LLAMA_1B, bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=None
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    words = [i for token, i in tokenizer.get_vocab().items() if _is_word(token)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=0.08)
            elif parameter.dim() == 2:
                parameter.normal_(std=0.02)
        embedding = model.get_input_embeddings().weight
        rows = torch.full((embedding.shape[0], 1), 1 / 64, dtype=embedding.dtype)
        rows[words] = 1
        embedding.mul_(rows)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=eos
    )
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)


def _is_word(token: str) -> bool:
    word = token.removeprefix("Ġ")  # byte-level vocabularies write a leading space so
    return word != token and len(word) > 1 and word.isascii() and word.isalpha()


def prepare(name: str, source: Path, output: Path) -> tuple[Path, Path]:
    """(model folder, adapter volume) of SMALL or LARGE, made on the first call.

    Raises FileNotFoundError if they must be made and `source` is no model folder.
    """
    folder, volume = output / "models" / name, output / "adapters" / name
    write = {SMALL: write_rounded, LARGE: write_random_1b}[name]
    _once(folder, lambda partial: write(_model_folder(source), partial))
    _once(volume, lambda partial: write_adapters(folder, partial, ADAPTERS))
    return folder, volume


def _model_folder(source: Path) -> Path:
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no model. `make model` prepares one.")
    return source


def _once(folder: Path, write: Callable[[Path], None]) -> None:
    """Written beside its final name and renamed, so that an interrupted run leaves nothing half made."""
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    partial.rename(folder)


def embedded_model() -> Path:
    """Where `make model` puts the embedded model."""
    return (
        Path(os.environ.get("LORACHAT_CACHE") or ROOT / ".cache") / "models/smollm2-135m-instruct"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("names", nargs="*", choices=[[], SMALL, LARGE], help="default: both")
    parser.add_argument("--source", type=Path, default=embedded_model(), help="SmolLM2's folder")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    for name in arguments.names or (SMALL, LARGE):
        folder, volume = prepare(name, arguments.source, arguments.output)
        print(f"{name}: model {folder}, adapters {volume}")


if __name__ == "__main__":
    main()
