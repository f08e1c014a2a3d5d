"""PEFT writes an adapter, the server reads it: A, B and the scaling of every module are PEFT's, or it is refused.

That the logits are PEFT's too is tested with the runners.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from server.errors import AdapterError
from server.model.adapter import read_adapter
from server.model.config import DecoderConfig, read_config
from server.model.lora import AdapterWeights
from server.model.peft_config import matches
from tests.families import write_model
from tests.models import write_peft_adapter

Q1 = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> DecoderConfig:
    return read_config(json.loads((tiny_model / "config.json").read_text()))


def pefts_own(base: Path, adapter: Path) -> dict[tuple[int, str], tuple[Any, Any, float]]:
    """A, B and scaling of every module that PEFT adapts when it loads the folder."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    found = {}
    for name, layer in PeftModel.from_pretrained(model, adapter).named_modules():
        if isinstance(layer, LoraLayer):
            words = name.split(".")
            weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            a, b = (w.detach().float().numpy() for w in weights)
            found[int(words[-3]), words[-1]] = (a, b, layer.scaling["default"])
    return found


def assert_is_pefts(
    ours: AdapterWeights, theirs: dict[tuple[int, str], tuple[Any, Any, float]]
) -> None:
    assert ours.pairs.keys() == theirs.keys()
    for key, (a, b, scaling) in theirs.items():
        pair = ours.pairs[key]
        assert np.array_equal(pair.a, a)
        assert np.array_equal(pair.b, b)
        assert pair.scaling == pytest.approx(scaling, rel=1e-15)
        for matrix in (pair.a, pair.b):
            assert matrix.dtype == np.float32
            assert matrix.flags.c_contiguous
            assert np.abs(matrix).max() > 0, "an adapter of zeros would prove nothing"
    assert ours.num_bytes == sum(4 * (a.size + b.size) for a, b, _ in theirs.values())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 16, "lora_alpha": 16},
        {"use_rslora": True, "r": 8},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["down_proj", "k_proj"], "lora_dropout": 0.1},
        {"lora_alpha": 3},
        {"lora_alpha": 2.5},
        {"target_modules": "all-linear"},
        {"target_modules": ["layers.1.mlp.up_proj", "v_proj"]},
        {"target_modules": [Q1, "v_proj"], "layers_to_transform": [0]},
        {"exclude_modules": ["layers.0.mlp.up_proj", "v_proj"]},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"layers_to_transform": [0, 7], "layers_pattern": ["h", "layers"]},
        {"layers_to_transform": []},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 9}},
        {"alpha_pattern": {"q_proj": 5, "up_proj": 0.5}},
        {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 32}, "use_rslora": True},
        {"rank_pattern": {f"^{Q1}": 3, r"^model\.layers\.0\.mlp\.up_proj$": 5}},
        {"rank_pattern": {r".*\.self_attn\.q_proj": 3, "proj": 7, "layers.0": 7}},
        # The first that matches counts. PEFT writes them sorted, so it reads back no other order.
        {"rank_pattern": {"1.self_attn.q_proj": 3, Q1: 5, "q_proj": 2}},
        {"rank_pattern": {"q.proj": 2, "Q_proj": 9, "_proj": 9}},
    ],
    ids=str,
)
def test_every_kind_of_configuration_gives_pefts_own_matrices(
    config: DecoderConfig, tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    write_peft_adapter(tiny_model, tmp_path, **settings)
    assert_is_pefts(read_adapter(tmp_path, "a@1", config), pefts_own(tiny_model, tmp_path))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mistral", "llama-wide-heads"])
def test_every_family_takes_adapters(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "base", name)
    write_peft_adapter(tmp_path / "base", tmp_path / "adapter")
    ours = read_adapter(tmp_path / "adapter", "a@1", read_config(model.config.to_dict()))
    assert_is_pefts(ours, pefts_own(tmp_path / "base", tmp_path / "adapter"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_hold_the_same_values_in_float32(
    config: DecoderConfig, tiny_model: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    write_peft_adapter(tiny_model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    assert_is_pefts(read_adapter(tmp_path, "a@1", config), pefts_own(tiny_model, tmp_path))


def test_the_digest_is_of_the_content(
    config: DecoderConfig, tiny_model: Path, tmp_path: Path
) -> None:
    def digest(name: str, **settings: Any) -> str:
        write_peft_adapter(tiny_model, tmp_path / name, **settings)
        return read_adapter(tmp_path / name, f"{name}@1", config).digest

    first = digest("a")
    assert digest("b") == first, "another name and time, the same adapter"
    assert len({first, digest("c", seed=2), digest("d", lora_alpha=9), digest("e", r=5)}) == 4
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({k: t.to(torch.bfloat16) for k, t in load_file(path).items()}, path)
    narrow = read_adapter(tmp_path / "a", "a@1", config).digest
    save_file({k: t.to(torch.float32) for k, t in load_file(path).items()}, path)
    assert read_adapter(tmp_path / "a", "a@1", config).digest == narrow != first


def test_weights_are_their_own_key_and_leave_with_their_last_reference(
    config: DecoderConfig, tiny_model: Path, tmp_path: Path
) -> None:
    write_peft_adapter(tiny_model, tmp_path)
    one, two = (read_adapter(tmp_path, "a@1", config) for _ in range(2))
    packed = weakref.WeakKeyDictionary({one: 1, two: 2})
    assert [packed[one], packed[two]] == [1, 2]
    del one
    gc.collect()
    assert list(packed.values()) == [2]


NAMES = st.sampled_from(
    ["model", "layers", "0", "1", "self_attn", "mlp", "q_proj", "up_proj", "proj"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map(".".join)


@given(
    PATHS,
    PATHS,
    st.sampled_from(["", "^", r".*\.", r"^.*\."]),
    st.sampled_from(["", "$"]),
    st.booleans(),
)
def test_a_plain_pattern_matches_what_pefts_regular_expression_does(
    path: str, name: str, before: str, after: str, escaped: bool
) -> None:
    import re

    from peft.utils.other import get_pattern_key

    pattern = f"{before}{re.escape(name) if escaped else name}{after}"
    assert matches(pattern, path) == (get_pattern_key([pattern], path) is pattern)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": r".*\.q_proj"}, "must be a list of names"),
        ({"rank_pattern": {".*q_proj": 2}}, "regular expression"),
        ({"alpha_pattern": {"(a|a)*b": 2}}, "regular expression"),
        ({"rank_pattern": {r"layers\.\d+\.self_attn\.q_proj": 2}}, "regular expression"),
        ({"layers_to_transform": [0], "layers_pattern": "lay.*"}, "regular expression"),
        ({"exclude_modules": ".*v_proj"}, "exclude_modules must be a list"),
    ],
    ids=str,
)
def test_what_is_not_applied_is_refused_and_never_half_applied(
    config: DecoderConfig, tiny_model: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    write_peft_adapter(tiny_model, tmp_path, **settings)
    with pytest.raises(AdapterError, match=reason):
        read_adapter(tmp_path, "a@1", config)


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
B0 = A0.replace("lora_A", "lora_B")
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
        (edit_config(layers_to_transform=[0]), "does not name it"),
        (edit_config(exclude_modules=["v_proj"]), "does not name it"),
        (edit_config(rank_pattern={"q_proj": 2}), "rank 4/4; adapter_config.json says 2"),
        (edit_config(rank_pattern={"q_proj": "2"}), "q_proj='2'"),
        (edit_config(rank_pattern={"q_proj": True}), "q_proj=True"),
        (edit_config(rank_pattern=["q_proj"]), "rank_pattern"),
        (edit_config(alpha_pattern={"q_proj": -1}), "q_proj=-1"),
        (edit_config(layers_to_transform="0"), "layers_to_transform"),
        (edit_config(layers_to_transform=[True]), "layers_to_transform"),
        (edit_config(target_modules=None), "target_modules"),
        (edit_config(some_new_feature=True), "some_new_feature"),
        (edit_tensors(lambda t: t.pop(A0)), "B matrix and no A"),
        (edit_tensors(lambda t: [t.pop(A0), t.pop(B0)]), "layers.0.self_attn.q_proj, which has no"),
        (edit_tensors(lambda t: t.update({A0: t[A0].to(torch.int8)})), "no float type"),
        (edit_tensors(lambda t: t.update({A9: t[A0].clone()})), "belongs to nothing"),
        (edit_tensors(lambda t: t.update({A0: t[A0][:, :-1].clone()})), "shape"),
        (edit_tensors(poison), "finite"),
        (edit_tensors(lambda t: t.clear()), "no tensors"),
        (truncate, "damaged"),
        (pickle_only, "missing"),
    ],
)
def test_a_damaged_adapter_is_refused_with_the_reason(
    config: DecoderConfig,
    tiny_model: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    write_peft_adapter(tiny_model, tmp_path)
    damage(tmp_path)
    with pytest.raises(AdapterError, match=reason):
        read_adapter(tmp_path, "a@1", config)
