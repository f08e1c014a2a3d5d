"""Tokenizers from files: a folder's tokenizer.json, or the vocabulary inside a GGUF file.

Only the narrow parts of transformers are imported: its Auto classes, and its own GGUF reader, import torch, which
takes seconds and hundreds of megabytes that a server on its native path has no use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from server.errors import ModelLoadError

TOKENIZER_FILE = "tokenizer.json"
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def folder_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Raises ModelLoadError without tokenizer.json, and whatever a broken file makes the library raise."""
    if not (folder / TOKENIZER_FILE).is_file():
        raise ModelLoadError(
            f"it has no {TOKENIZER_FILE}. AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers"
            " writes it from older files."
        )
    return PreTrainedTokenizerFast.from_pretrained(folder)


def gguf_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """metadata: the file's key-value pairs. Raises ModelLoadError for a vocabulary of a kind that is not known.

    transformers builds the tokenizer out of these words; collecting them is done here, as its get_gguf_tokenizer does.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (  # noqa: PLC0415 (only for GGUF files)
        GGUF_TOKENIZER_MAPPING,
        convert_gguf_tokenizer,
    )

    words = _collect(metadata, GGUF_TOKENIZER_MAPPING["tokenizer"])
    options = _collect(metadata, GGUF_TOKENIZER_MAPPING["tokenizer_config"])
    tokens = words.get("tokens")
    if not isinstance(tokens, list):
        raise ModelLoadError("it holds no vocabulary.")
    if words.get("tokenizer_type") == "llama":
        options.setdefault("add_bos_token", True)
    for name, key in _SPECIAL.items():
        number = metadata.get(f"tokenizer.ggml.{key}")
        if number is not None and not 0 <= number < len(tokens):
            raise ModelLoadError(f"its {key} is {number}, beyond its vocabulary.")
        options[name] = None if number is None else tokens[number]
    try:
        backend, extra = convert_gguf_tokenizer(str(metadata.get("general.architecture")), words)
    except ValueError as error:
        raise ModelLoadError(f"its tokenizer cannot be built: {error}") from None
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options, **extra)


def _collect(metadata: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: metadata[f"tokenizer.{key}"]
        for key, name in names.items()
        if f"tokenizer.{key}" in metadata
    }
