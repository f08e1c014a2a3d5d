"""Trainer and server name a base by the same digest, though they share no code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.model.checkpoint import open_checkpoint
from server.model.digest import weights_digest as server_digest
from tests.families import FAMILIES, write_model
from tests.models import write_tiny_model
from trainer.weights import weights_digest as trainer_digest


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_trainers_digest_of_a_folder_is_the_servers(
    tmp_path: Path, dtype: torch.dtype, *, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    write_tiny_model(tmp_path / "float32", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=dtype)
    model.save_pretrained(tmp_path / "stored", max_shard_size="100KB")
    checkpoint = open_checkpoint(tmp_path / "stored")
    assert trainer_digest(tmp_path / "stored") == server_digest(checkpoint, threads=3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_one_digest(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, name)
    assert trainer_digest(tmp_path) == server_digest(open_checkpoint(tmp_path))


@pytest.mark.parametrize("factor", [1, 2])
def test_a_tied_output_layer_that_is_stored_counts_if_it_differs(
    tmp_path: Path, factor: int
) -> None:
    write_model(tmp_path, "llama-3.2")
    without = server_digest(open_checkpoint(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * factor
    save_file(tensors, tmp_path / "model.safetensors")
    digest = server_digest(open_checkpoint(tmp_path))
    assert digest == trainer_digest(tmp_path)
    assert (digest == without) == (factor == 1)


def test_the_type_and_the_sharding_of_the_files_are_not_part_of_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a", "llama-2").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bfloat16", max_shard_size="30KB")
    model.float().save_pretrained(tmp_path / "float32")
    digests = [server_digest(open_checkpoint(tmp_path / n)) for n in ("bfloat16", "float32")]
    assert digests[0] == digests[1]


def test_one_changed_value_is_another_base(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "a")
    before = server_digest(open_checkpoint(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-6
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    assert server_digest(open_checkpoint(tmp_path / "b")) != before


@pytest.mark.model
def test_the_embedded_model_has_one_digest_as_gguf_and_as_checkpoint(embedded_model: Path) -> None:
    from demo.model import gguf_file

    from_gguf = server_digest(open_checkpoint(gguf_file()))
    assert from_gguf == trainer_digest(embedded_model)
