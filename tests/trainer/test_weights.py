"""The weights digest names the float32 values of a model and nothing else about its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trainer import weights
from trainer.weights import WeightsError, weights_digest


def tiny_llama(*, tied: bool, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=11,  # "layers.10" sorts before "layers.2": order of name, not of depth
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    )


def digest_of(model: torch.nn.Module) -> str:
    """The definition in docs/contracts.md, written out over a loaded model."""
    total = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        values = value.detach().to(torch.float32).numpy().astype("<f4").tobytes()
        shape = "x".join(map(str, value.shape))
        total.update(f"{name}\0{shape}\0".encode() + hashlib.sha256(values).digest())
    return f"sha256:{total.hexdigest()}"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"], ids=["single", "sharded"])
def test_equals_the_definition_over_the_loaded_model(
    tied: bool, dtype: torch.dtype, shard_size: str, tmp_path: Path
) -> None:
    tiny_llama(tied=tied).to(dtype).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / weights.INDEX_FILE).exists() == (shard_size == "20KB")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)

    assert ("lm_head.weight" in dict(loaded.named_parameters())) is not tied
    assert weights_digest(tmp_path) == digest_of(loaded)


def test_does_not_depend_on_how_the_values_are_stored(tmp_path: Path) -> None:
    model = tiny_llama(tied=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    model.to(torch.float32).save_pretrained(tmp_path / "f32-sharded", max_shard_size="20KB")

    assert weights_digest(tmp_path / "bf16") == weights_digest(tmp_path / "f32-sharded")


def test_reading_in_small_blocks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama(tied=False).save_pretrained(tmp_path)
    whole = weights_digest(tmp_path)
    monkeypatch.setattr(weights, "BLOCK_BYTES", 200)  # three rows and a bit of the embedding

    assert weights_digest(tmp_path) == whole


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.10.mlp.up_proj.weight"])
def test_one_flipped_value_changes_it(name: str, tmp_path: Path) -> None:
    tiny_llama(tied=True).save_pretrained(tmp_path)
    before = weights_digest(tmp_path)
    tensors = load_file(tmp_path / weights.SINGLE_FILE)
    tensors[name].view(-1)[-1] += 1e-3
    save_file(tensors, tmp_path / weights.SINGLE_FILE, metadata={"format": "pt"})

    assert weights_digest(tmp_path) != before


def test_buffers_and_a_stored_copy_of_a_tied_head_are_left_out(tmp_path: Path) -> None:
    tiny_llama(tied=True).save_pretrained(tmp_path)
    before = weights_digest(tmp_path)
    tensors = load_file(tmp_path / weights.SINGLE_FILE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / weights.SINGLE_FILE, metadata={"format": "pt"})

    assert weights_digest(tmp_path) == before


def test_a_head_stored_with_other_values_counts_as_transformers_counts_it(tmp_path: Path) -> None:
    tiny_llama(tied=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / weights.SINGLE_FILE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, tmp_path / weights.SINGLE_FILE, metadata={"format": "pt"})

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)

    assert weights_digest(tmp_path) == digest_of(loaded)


def test_a_missing_tensor_is_an_error_that_names_it(tmp_path: Path) -> None:
    tiny_llama(tied=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / weights.SINGLE_FILE)
    del tensors["model.layers.3.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / weights.SINGLE_FILE, metadata={"format": "pt"})

    with pytest.raises(WeightsError, match=r"model\.layers\.3\.mlp\.down_proj\.weight"):
        weights_digest(tmp_path)


def test_a_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    tiny_llama(tied=False).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = json.loads((tmp_path / weights.INDEX_FILE).read_text())["weight_map"]
    lost = shards["model.norm.weight"]
    (tmp_path / lost).unlink()

    with pytest.raises(WeightsError, match=lost):
        weights_digest(tmp_path)


def test_quantised_values_have_no_digest(tmp_path: Path) -> None:
    tiny_llama(tied=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / weights.SINGLE_FILE)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.uint8)
    save_file(tensors, tmp_path / weights.SINGLE_FILE, metadata={"format": "pt"})

    with pytest.raises(WeightsError, match="give the float base"):
        weights_digest(tmp_path)


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_folder_without_a_model_is_an_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)

    with pytest.raises(WeightsError, match="config"):
        weights_digest(tmp_path)
