"""PEFT writes an adapter, the server reads it: the logits must be PEFT's own, or the adapter refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.errors import AdapterError
from server.model.adapter import read_adapter
from server.model.loader import BaseModel, load_base
from server.model.runner import ModelRunner
from server.step import Batch
from tests.models import write_peft_adapter
from tests.server.test_decoder import logits_of, row

PROMPT = [5, 90, 17, 33, 200, 41, 8, 8, 120]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    return load_base(str(tiny_model))


def peft_logits(base: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        return PeftModel.from_pretrained(model, adapter)(torch.tensor([PROMPT])).logits[0, -1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 16, "lora_alpha": 16},
        {"use_rslora": True, "r": 8},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["down_proj", "k_proj"], "lora_dropout": 0.1},
        {"lora_alpha": 3},
        {"target_modules": "all-linear"},
        {"target_modules": ["layers.1.mlp.up_proj", "v_proj"]},
    ],
    ids=str,
)
def test_logits_equal_pefts(
    base: BaseModel, tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    write_peft_adapter(tiny_model, tmp_path, **settings)
    adapter = read_adapter(tmp_path, "a@1", base.config)
    ours = logits_of(ModelRunner(base.decoder), Batch((row(0, PROMPT, adapter=adapter),)))[0]
    without = logits_of(ModelRunner(base.decoder), Batch((row(0, PROMPT),)))[0]
    torch.testing.assert_close(ours, peft_logits(tiny_model, tmp_path), atol=2e-4, rtol=1e-4)
    assert (ours - without).abs().max() > 0.01, "the adapter has no effect, so this proves nothing"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ],
    ids=str,
)
def test_what_is_not_applied_is_refused_and_never_half_applied(
    base: BaseModel, tiny_model: Path, tmp_path: Path, settings: dict[str, Any], reason: str | None
) -> None:
    write_peft_adapter(tiny_model, tmp_path, **settings)
    with pytest.raises(AdapterError, match=reason):
        read_adapter(tmp_path, "a@1", base.config)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
A9 = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A0][0, 0] = float("nan")


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (edit_config(peft_type="IA3"), "IA3"),
        (edit_config(r=0), "r=0"),
        (edit_config(r=8), "rank"),
        (edit_config(auto_mapping={"parent_library": "os"}), "auto_mapping"),
        (edit_config(megatron_config={"x": 1}), "megatron_config"),
        (edit_config(target_modules=".*(a|a)*b"), "target_modules"),
        (edit_config(target_modules=["q_proj"]), "does not name it"),
        (edit_config(some_new_feature=True), "some_new_feature"),
        (edit_tensors(lambda t: t.pop(A0)), "B matrix and no A"),
        (edit_tensors(lambda t: t.update({A9: t[A0].clone()})), "belongs to nothing"),
        (edit_tensors(lambda t: t.update({A0: t[A0][:, :-1].clone()})), "shape"),
        (edit_tensors(poison), "finite"),
        (edit_tensors(lambda t: t.clear()), "no tensors"),
        (truncate, "damaged"),
        (pickle_only, "missing"),
    ],
)
def test_a_damaged_adapter_is_refused_with_the_reason(
    base: BaseModel,
    tiny_model: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    write_peft_adapter(tiny_model, tmp_path)
    damage(tmp_path)
    with pytest.raises(AdapterError, match=reason):
        read_adapter(tmp_path, "a@1", base.config)
