"""The base model: from a hub id, a folder or a GGUF file to its shape, rotary table, tokenizer and stop tokens.

The weights stay in their file until a runner reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelLoadError
from server.model.checkpoint import (
    CONFIG_FILE,
    GGUF_SUFFIX,
    Checkpoint,
    open_folder,
    open_gguf,
    read_json,
)
from server.model.config import DecoderConfig
from server.model.hub import download
from server.model.rope import rotary_table
from server.model.tokenizer import ChatTokenizer
from server.model.tokenizer_files import folder_tokenizer, gguf_tokenizer

log = logging.getLogger("lorachat.model")

DEFAULT_CONTEXT = 8192
GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True, slots=True, eq=False)
class BaseModel:
    """id: as the checkpoint or the operator names it. cos, sin: (max_context, head_dim // 2) float32."""

    id: str
    config: DecoderConfig
    checkpoint: Checkpoint
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    tokenizer: ChatTokenizer
    stop_token_ids: frozenset[int]
    max_context: int


def load_base(source: str, max_context: int | None = None, base_id: str | None = None) -> BaseModel:
    """Raises ModelLoadError with what to do.

    max_context: positions to serve; by default what the model was trained for, at most 8192.
    base_id: the base's name, where the source does not tell it (a folder).
    """
    path = _locate(source)
    try:
        return _load(path, max_context, base_id or _model_id(source))
    except ModelLoadError as error:
        raise ModelLoadError(f"{source}: {error}") from None


def _load(path: Path, max_context: int | None, base_id: str) -> BaseModel:
    try:
        if path.suffix == GGUF_SUFFIX:
            checkpoint, metadata = open_gguf(path)
            tokenizer = gguf_tokenizer(metadata)
        else:
            checkpoint = open_folder(path)
            tokenizer = folder_tokenizer(path)
    except ModelLoadError:
        raise
    except Exception as error:  # the library raises whatever the broken part happens to break
        raise ModelLoadError(f"its tokenizer cannot be read: {_first_line(error)}") from error
    config = checkpoint.config
    if max(tokenizer.get_vocab().values(), default=0) >= config.vocab_size:
        # One such token in a message would fail every request of its step.
        raise ModelLoadError("its tokenizer has tokens that it has no embedding for.")
    positions = min(max_context or DEFAULT_CONTEXT, config.max_positions)
    if max_context is not None and max_context > positions:
        log.warning(
            "the context is %d tokens, not %d: the model was trained for no more",
            positions,
            max_context,
        )
    cos, sin = rotary_table(checkpoint.settings, config, positions)
    return BaseModel(
        id=base_id,
        config=config,
        checkpoint=checkpoint,
        cos=cos,
        sin=sin,
        tokenizer=ChatTokenizer(tokenizer),
        stop_token_ids=_stop_token_ids(path, checkpoint.settings, tokenizer, config.vocab_size),
        max_context=positions,
    )


def _locate(source: str) -> Path:
    """A folder with config.json, or a GGUF file. Raises ModelLoadError."""
    path = Path(source).expanduser()
    if path.suffix == GGUF_SUFFIX:
        if not path.is_file():
            raise ModelLoadError(f"There is no GGUF file at {source}.")
        return path
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise ModelLoadError(
                f"The folder {source} holds no {CONFIG_FILE}, so it is not a model."
            )
        return path
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelLoadError(
            f"There is no folder at {source}. `make model` prepares the embedded model."
        )
    return download(source)


def _stop_token_ids(
    path: Path, settings: Mapping[str, Any], tokenizer: Any, vocab_size: int
) -> frozenset[int]:
    """Of the generation settings, or of the configuration where there are none; and the tokenizer's own."""
    generation = path / GENERATION_FILE
    named = read_json(generation) if path.is_dir() and generation.is_file() else settings
    eos = named.get("eos_token_id")
    ids = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}
    if not ids:
        raise ModelLoadError("it names no end-of-text token, so no answer would ever end.")
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < vocab_size:
            raise ModelLoadError(f"its end-of-text token {number!r} is not in its vocabulary.")
    return frozenset(ids)


def _model_id(source: str) -> str:
    """A name to show: never a path of this machine."""
    path = Path(source).expanduser()
    return path.name if path.exists() else source


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
