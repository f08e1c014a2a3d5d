"""The decoder against transformers (the oracle), and the step against itself: alone, batched, in pieces."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ModelLoadError
from server.model.adapter import read_adapter
from server.model.loader import BaseModel, load_base
from server.model.lora import AdapterWeights
from server.model.runner import ModelRunner
from server.step import Batch, Row
from server.types import SamplingParams
from tests.models import write_peft_adapter, write_tiny_model


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    return load_base(str(tiny_model))


@pytest.fixture(scope="module")
def adapters(base: BaseModel, tiny_model: Path, once: Any) -> list[AdapterWeights]:
    def build(folder: Path) -> None:
        write_peft_adapter(tiny_model, folder / "a", seed=1)
        write_peft_adapter(
            tiny_model, folder / "b", seed=2, r=8, target_modules=["q_proj", "v_proj"]
        )

    folder = once("tiny-adapters", build)
    return [read_adapter(folder / name, name, base.config) for name in ("a", "b")]


def row(
    slot: int,
    tokens: Sequence[int],
    start: int = 0,
    adapter: AdapterWeights | None = None,
    **params: Any,
) -> Row:
    return Row(
        slot=slot,
        token_ids=tuple(tokens),
        start=start,
        capacity=200,
        samples=True,
        params=SamplingParams(**{"temperature": 0, **params}),
        seed=params.get("seed", slot),
        draw=0,
        adapter=adapter,
    )


def logits_of(decoder_runner: ModelRunner, batch: Batch) -> torch.Tensor:
    """Logits of a batch's last tokens, caught on their way to the sampler. (rows, vocab)"""
    caught = []
    forward = decoder_runner._decoder.forward

    def spy(**arguments: Any) -> torch.Tensor:
        caught.append(forward(**arguments))
        return caught[-1]

    decoder_runner._decoder.forward = spy  # type: ignore[method-assign]
    try:
        decoder_runner.step(batch)
    finally:
        decoder_runner._decoder.forward = forward  # type: ignore[method-assign]
    return caught[0]


def reference(folder: Path, prompt: Sequence[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([list(prompt)])).logits[0, -1]


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(
    tmp_path: Path, rope: str, heads: tuple[int, int], *, tied: bool
) -> None:
    write_tiny_model(
        tmp_path,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        tie_word_embeddings=tied,
        rope_parameters=ROPES[rope],
    )
    prompt = [5 + i % 200 for i in range(150)]
    ours = logits_of(ModelRunner(load_base(str(tmp_path)).decoder), Batch((row(0, prompt),)))
    torch.testing.assert_close(ours[0], reference(tmp_path, prompt), atol=2e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_rows_in_any_mix_and_any_pieces_give_what_they_give_alone(
    base: BaseModel, adapters: list[AdapterWeights], seed: int
) -> None:
    kinds = [None, *adapters]
    chance = random.Random(seed)
    prompts = [
        ([chance.randint(3, 258) for _ in range(chance.randint(1, 40))], chance.randint(0, 2))
        for _ in range(chance.randint(1, 5))
    ]
    alone = [
        logits_of(ModelRunner(base.decoder), Batch((row(0, prompt, 0, kinds[kind]),)))[0]
        for prompt, kind in prompts
    ]
    runner = ModelRunner(base.decoder)
    done = [0] * len(prompts)
    last: dict[int, torch.Tensor] = {}
    while any(done[i] < len(prompt) for i, (prompt, _) in enumerate(prompts)):
        rows, names = [], []
        for i, (prompt, kind) in enumerate(prompts):
            size = chance.randint(0, len(prompt) - done[i])
            if size:
                rows.append(row(i, prompt[done[i] : done[i] + size], done[i], kinds[kind]))
                names.append(i)
                done[i] += size
        if rows:
            order = sorted(
                range(len(rows)), key=lambda k: rows[k].adapter.key if rows[k].adapter else ""
            )
            for k, values in zip(order, logits_of(runner, Batch(tuple(rows))), strict=True):
                last[names[k]] = values
    for i, expected in enumerate(alone):
        torch.testing.assert_close(last[i], expected, atol=2e-4, rtol=1e-4)


def test_a_released_slot_starts_anew(base: BaseModel) -> None:
    runner = ModelRunner(base.decoder)
    fresh = logits_of(runner, Batch((row(0, [9, 8, 7]),)))
    runner.release(0)
    runner.release(0)
    assert runner.num_slots_in_use == 0
    assert torch.equal(logits_of(runner, Batch((row(0, [9, 8, 7]),))), fresh)


def test_a_seeded_draw_does_not_depend_on_the_neighbours(base: BaseModel) -> None:
    def answer(neighbours: int) -> list[int]:
        runner, tokens, position, drawn = ModelRunner(base.decoder), [5, 6, 7], 0, []
        for _ in range(12):
            mine = row(0, tokens, position, temperature=1.0, top_p=0.9, seed=42)
            others = [row(9 + i, tokens, position, temperature=1.0) for i in range(neighbours)]
            position += len(tokens)
            sampled = runner.step(Batch((*others, mine)))[-1]
            assert sampled is not None
            tokens = [sampled.token_id]
            drawn += tokens
        return drawn

    assert answer(0) == answer(3)


def test_a_model_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="'gpt2' are not served"):
        load_base(str(tmp_path))


def test_a_tokenizer_with_tokens_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, vocab_size=200)
    with pytest.raises(ModelLoadError, match="no embedding"):
        load_base(str(tmp_path))


def lose_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def quantise(folder: Path) -> None:
    path = folder / "config.json"
    kind = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": kind}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose_a_tensor, "lacks 1 tensors, model.layers.1.mlp.up_proj.weight"),
        (quantise, "name the float checkpoint"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
    ],
)
def test_a_checkpoint_that_is_not_whole_or_not_float_is_a_clear_message(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    write_tiny_model(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelLoadError, match=reason):
        load_base(str(tmp_path))


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "missing.gguf"])
def test_a_model_that_is_not_there_is_a_clear_message(source: str) -> None:
    with pytest.raises(ModelLoadError, match="There is no"):
        load_base(source)
