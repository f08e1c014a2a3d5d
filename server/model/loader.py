"""The base model: from a hub id, a folder or a GGUF file to float32 weights, shape, tokenizer and stop tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from server.errors import ModelLoadError
from server.model.config import DecoderConfig, read_config
from server.model.decoder import LlamaDecoder
from server.model.tokenizer import ChatTokenizer

log = logging.getLogger("lorachat.model")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """id: as the checkpoint or the operator names it. weights: parameters by name, tied ones once."""

    id: str
    config: DecoderConfig
    weights: Mapping[str, Tensor]
    decoder: LlamaDecoder
    tokenizer: ChatTokenizer
    stop_token_ids: frozenset[int]
    max_context: int

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.weights.values())


def load_base(source: str, max_context: int | None = None, base_id: str | None = None) -> BaseModel:
    """Raises ModelLoadError with what to do.

    max_context: positions to serve; by default what the model was trained for, at most 8192.
    base_id: the base's name, where the source does not tell it (a folder).
    """
    place = _locate(source)
    hf_logging.disable_progress_bar()
    try:
        hf_config = AutoConfig.from_pretrained(**place)
        config = read_config(hf_config)
        # float32 whatever the checkpoint stores: the exact values, only wider.
        model, report = AutoModelForCausalLM.from_pretrained(
            **place, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except ModelLoadError as error:
        raise ModelLoadError(f"{source}: {error}") from None
    except Exception as error:  # the libraries raise whatever the broken part happens to break
        raise ModelLoadError(
            f"The model '{source}' cannot be loaded: {_first_line(error)}"
        ) from error
    if missing := sorted(report["missing_keys"]):  # the library would go on with random numbers
        raise ModelLoadError(
            f"{source}: the checkpoint lacks {len(missing)} tensors, {missing[0]} among them."
        )
    if max(tokenizer.get_vocab().values()) >= config.vocab_size:
        # One such token in a message would fail every request of its step.
        raise ModelLoadError(f"{source}: its tokenizer has tokens that it has no embedding for.")
    positions = min(max_context or 8192, config.max_positions)
    cos, sin = _rotary_table(model, positions)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return BaseModel(
        id=base_id or _model_id(source),
        config=config,
        weights=weights,
        decoder=LlamaDecoder(config, weights, cos, sin),
        tokenizer=ChatTokenizer(tokenizer),
        stop_token_ids=_stop_token_ids(model.generation_config, tokenizer),
        max_context=positions,
    )


def _locate(source: str) -> dict[str, str]:
    """Arguments of from_pretrained. Raises ModelLoadError for a path that is not there."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"There is no GGUF file at {source}.")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelLoadError(f"The folder {source} holds no config.json, so it is not a model.")
        return {"pretrained_model_name_or_path": str(path)}
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelLoadError(
            f"There is no folder at {source}. `make model` prepares the embedded model."
        )
    return {"pretrained_model_name_or_path": source}


def _rotary_table(model: Any, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin, (positions, head_dim) each, computed by transformers' own module."""
    with torch.inference_mode():
        probe = torch.zeros(1, dtype=torch.float32)
        cos, sin = model.model.rotary_emb(probe, torch.arange(positions).unsqueeze(0))
    return cos[0].clone(), sin[0].clone()


def _stop_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    eos = generation_config.eos_token_id
    ids = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
    ids.discard(None)
    if not ids:
        raise ModelLoadError("The model names no end-of-text token, so no answer would ever end.")
    return frozenset(ids)


def _model_id(source: str) -> str:
    """A name to show: never a path of this machine."""
    path = Path(source).expanduser()
    return path.name if path.exists() else source


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
