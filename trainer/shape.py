"""Writes a model of a known architecture with random weights and a Llama-3-style tokenizer.

For trying a recipe at its real size where the real weights cannot be had, and for tests at a tiny one. Such a model
knows nothing: its speed, its memory and its way through the programs are real, its answers are noise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

# From the models' published config.json.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-3b": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "tiny": {
        "vocab_size": 1280,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SPECIALS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    2: "<|reserved_special_token_0|>",
    3: "<|reserved_special_token_1|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|reserved_special_token_2|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
SPECIAL_TOKENS = 256  # the last of the vocabulary, as in Llama 3
# Llama 3 splits text like this before BPE: newlines cling together, and to no word.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_shape(like: str, folder: Path, *, text: Path | None = None, seed: int = 3407) -> int:
    """Write a random model like `like` into the new folder; the number of its parameters.

    text: a file whose words the tokenizer learns; without one a text about nothing, and more tokens per word.
    Weights are bfloat16. Raises ConfigError if the name is not known or the folder exists.
    """
    if like not in SHAPES:
        raise ConfigError(f"--like {like!r} is not a known shape; known are {', '.join(SHAPES)}.")
    if folder.exists():
        raise ConfigError(f"{folder} exists already; name a folder that does not.")
    if text is not None and not text.is_file():
        raise ConfigError(f"--text {text} is not a file.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    shape = SHAPES[like]
    parameters = _write_model(shape, staging, seed)
    _write_tokenizer(shape["vocab_size"], staging, text)
    staging.rename(folder)
    return parameters


def _write_model(shape: Mapping[str, Any], folder: Path, seed: int) -> int:
    import torch  # noqa: PLC0415 (seconds to import)
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    first = shape["vocab_size"] - SPECIAL_TOKENS
    config = LlamaConfig(
        **shape,
        max_position_embeddings=131072,
        rope_parameters=dict(ROPE),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=first,
        eos_token_id=[first + 1, first + 8, first + 9],
        pad_token_id=first + 4,
    )
    torch.manual_seed(seed)
    # Filled on a GPU where there is one: three thousand million normal numbers take a processor a minute.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config = GenerationConfig(
        bos_token_id=first,
        eos_token_id=[first + 1, first + 8, first + 9],
        pad_token_id=first + 4,
    )
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _write_tokenizer(vocabulary: int, folder: Path, text: Path | None) -> None:
    from tokenizers import (  # noqa: PLC0415 (with transformers only)
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    first = vocabulary - SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = [SPLIT] if text is None else text.read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=first,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    # What the text did not teach is filled up with tokens no text has, so that the special ones keep their numbers.
    known = tokenizer.get_vocab_size()
    specials = [SPECIALS.get(i, f"<|reserved_special_token_{i - 8}|>") for i in range(256)]
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] |= {f"<|unused_{i}|>": i for i in range(known, first)}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", special_tokens=[(SPECIALS[0], first)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[0],
        eos_token=SPECIALS[9],
        pad_token=SPECIALS[4],
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
