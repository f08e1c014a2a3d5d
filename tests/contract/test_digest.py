"""Trainer and server name a base by the same digest, though they share no code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.model.digest import weights_digest as server_digest
from server.model.loader import load_base
from tests.models import write_tiny_model
from trainer.weights import weights_digest as trainer_digest


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trainers_digest_of_a_folder_is_the_servers_of_the_loaded_model(
    tmp_path: Path, dtype: torch.dtype, *, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    write_tiny_model(tmp_path / "float32", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=dtype)
    model.save_pretrained(tmp_path / "stored", max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "stored" / name).write_bytes((tmp_path / "float32" / name).read_bytes())
    loaded = load_base(str(tmp_path / "stored"))
    assert trainer_digest(tmp_path / "stored") == server_digest(loaded.weights)


def test_one_changed_value_is_another_base(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    weights = dict(load_base(str(tmp_path)).weights)
    before = server_digest(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    changed = weights[name].clone()
    changed[3, 5] += 1e-6
    assert server_digest({**weights, name: changed}) != before
    assert server_digest({**weights, name: weights[name].T}) != before


@pytest.mark.model
def test_the_embedded_model_has_one_digest_as_gguf_and_as_checkpoint(embedded_model: Path) -> None:
    from demo.model import gguf_file

    from_gguf = server_digest(load_base(str(gguf_file())).weights)
    assert from_gguf == trainer_digest(embedded_model)
