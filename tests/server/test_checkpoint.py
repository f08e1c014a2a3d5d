"""transformers writes a checkpoint, the server reads it back: every value, under the same name, and nothing else."""

from __future__ import annotations

import gc
import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from server.errors import ModelLoadError
from server.model.checkpoint import Checkpoint, open_checkpoint
from server.model.safetensors_file import (
    FLOAT_TYPES,
    BytesInMemory,
    SafetensorsError,
    read_entry,
    read_table,
)
from tests.families import FAMILIES, make_model, write_model

Q0 = "model.layers.0.self_attn.q_proj.weight"
SINGLE = "model.safetensors"


def assert_holds(checkpoint: Checkpoint, model: Any) -> None:
    """Names, shapes and float32 values of the model's parameters."""
    parameters = dict(model.named_parameters())
    assert checkpoint.names == sorted(parameters)
    for name, parameter in parameters.items():
        values = checkpoint.read(name)
        assert values.flags.c_contiguous
        assert checkpoint.shape(name) == values.shape == tuple(parameter.shape)
        expected = parameter.detach()
        if values.dtype == np.uint16:
            assert np.array_equal(
                values.view(np.int16), expected.to(torch.bfloat16).view(torch.int16).numpy()
            )
        else:
            assert values.dtype == np.float32
            assert np.array_equal(values, expected.to(torch.float32).numpy())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read_back_value_by_value(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path, name)
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, model)
    config, theirs = checkpoint.config, model.config
    assert config.num_layers == theirs.num_hidden_layers
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == model.model.layers[0].self_attn.head_dim
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.tied == theirs.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_and_half_types_hold_the_same_values(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model("llama-3.2").to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, model)
    # bfloat16 is handed on as it is stored; float16 has values that bfloat16 has not.
    expected = np.uint16 if dtype == torch.bfloat16 else np.float32
    assert {checkpoint.read(name).dtype.type for name in checkpoint.names} == {expected}


def test_a_tensor_can_be_read_by_many_threads_and_outlives_the_checkpoint(tmp_path: Path) -> None:
    model = write_model(tmp_path, "qwen3")
    checkpoint = open_checkpoint(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(checkpoint.read, checkpoint.names * 20))
    del checkpoint
    gc.collect()
    for name, values in zip(sorted(dict(model.named_parameters())) * 20, results, strict=True):
        assert np.array_equal(values, model.get_parameter(name).detach().numpy())


def mapped_kilobytes(path: Path) -> int:
    """Resident memory of this process that maps the file."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    sizes, inside = 0, False
    for line in lines:
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = line.endswith(f" {path}")
        elif inside and line.startswith("Rss:"):
            sizes += int(line.split()[1])
    return sizes


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux")
def test_memory_is_given_back_with_the_last_reference(tmp_path: Path) -> None:
    write_model(tmp_path, "llama-2", vocab_size=20000)
    checkpoint = open_checkpoint(tmp_path)
    name = "model.embed_tokens.weight"
    values = checkpoint.read(name)
    part = values[100:]
    total = float(values.sum())
    del values
    in_use = mapped_kilobytes(tmp_path / SINGLE)
    assert in_use >= part.nbytes // 1024
    assert np.isfinite(total)
    del part
    assert mapped_kilobytes(tmp_path / SINGLE) < in_use // 4
    assert np.isclose(float(checkpoint.read(name).sum()), total)


def edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors)
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})

    return apply


def test_a_tied_output_layer_that_is_stored_twice_is_one_parameter(tmp_path: Path) -> None:
    model = write_model(tmp_path, "llama-3.2")
    edit(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(tmp_path)
    assert_holds(open_checkpoint(tmp_path), model)


def test_a_tied_model_may_store_only_its_output_layer(tmp_path: Path) -> None:
    model = write_model(tmp_path, "llama-3.2")
    edit(lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))(tmp_path)
    assert_holds(open_checkpoint(tmp_path), model)


def test_a_tied_model_with_another_output_layer_is_untied_as_transformers_does(
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    write_model(tmp_path, "llama-3.2")
    edit(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.config.tied
    assert_holds(checkpoint, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_rotary_buffers_of_old_checkpoints_are_not_parameters(tmp_path: Path) -> None:
    model = write_model(tmp_path, "llama-2")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(lambda t: t.update({name: torch.ones(6)}))(tmp_path)
    assert_holds(open_checkpoint(tmp_path), model)


def truncate(folder: Path) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:-100])


def append(folder: Path) -> None:
    with (folder / SINGLE).open("ab") as file:
        file.write(b"\0" * 8)


def write_bytes(data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / SINGLE).write_bytes(data)

    return apply


def edit_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / SINGLE).read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def swap_shape(header: dict[str, Any]) -> None:
    header[Q0]["shape"] = [*header[Q0]["shape"][::-1], 1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "model.safetensors is damaged: its tensors end"),
        (append, "damaged"),
        (write_bytes(b""), "cannot be read"),
        (write_bytes(b"abc"), "shorter than a header"),
        (write_bytes(struct.pack("<Q", 2**63) + b"{}"), "more than any"),
        (write_bytes(struct.pack("<Q", 500) + b"{}"), "within its header"),
        (write_bytes(struct.pack("<Q", 2) + b"[]"), "not a table"),
        (write_bytes(struct.pack("<Q", 2) + b"{x"), "not JSON"),
        (write_bytes(struct.pack("<Q", 9000) + b"[" * 9000), "not JSON"),
        (edit_header(lambda h: h[Q0]["data_offsets"].__setitem__(0, 4)), "does not fit shape"),
        (edit_header(lambda h: h[Q0].update(data_offsets=[-4, 0])), "impossible sizes"),
        (edit_header(lambda h: h[Q0].pop("shape")), "does not describe"),
        (edit_header(lambda h: h[Q0].update(dtype="Q9")), "not known"),
        (edit_header(lambda h: h.update({Q0: dict(h["model.norm.weight"])})), "does not begin"),
        (edit_header(swap_shape), "q_proj.weight has shape"),
        (edit(lambda t: t.pop(Q0)), "lacks the tensor model.layers.0.self_attn.q_proj"),
        (edit(lambda t: [t.pop(Q0), t.pop("model.norm.weight")]), "1 more tensors"),
        (edit(lambda t: t.update(extra=torch.ones(1))), "has the tensor extra"),
        (edit(lambda t: t.update({Q0: t[Q0][:-1].clone()})), r"\[47, 48\]; .* \[48, 48\]"),
        (edit(lambda t: t.update({Q0: t[Q0].to(torch.int8)})), "stored as I8"),
        (edit_config(num_hidden_layers=3), "lacks model.layers.2"),
        (lambda folder: (folder / SINGLE).rename(folder / "pytorch_model.bin"), "neither"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_reason(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    write_model(tmp_path, "llama-2")
    damage(tmp_path)
    with pytest.raises(ModelLoadError, match=reason):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda places: places.update({Q0: "../x.safetensors"}), "leads out"),
        (lambda places: places.update({Q0: "absent.safetensors"}), "absent.safetensors cannot"),
        (lambda places: places.update(ghost=places[Q0]), "lacks the tensor ghost"),
        (lambda places: places.pop(Q0), "lacks the tensor model.layers.0.self_attn.q_proj"),
    ],
)
def test_a_wrong_index_is_refused(
    tmp_path: Path, change: Callable[[dict[str, str]], object], reason: str
) -> None:
    make_model("llama-2").save_pretrained(tmp_path, max_shard_size="30KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=reason):
        open_checkpoint(tmp_path)


def test_tensors_at_odd_addresses_are_read_too(tmp_path: Path) -> None:
    model = write_model(tmp_path, "llama-2")
    edit_header(lambda header: header.update(__metadata__={"x": "y"}))(tmp_path)
    data = (tmp_path / SINGLE).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    odd = data[8 : 8 + length] + b" " * ((length + 1) % 2)
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(odd)) + odd + data[8 + length :])
    assert len(odd) % 2
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, model)
    assert all(checkpoint.read(name).flags.aligned for name in checkpoint.names)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_is_changed_in_a_header_it_is_read_whole_or_refused(
    whole_file: bytes, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(whole_file)
    for at, value in changes:
        data[at] = value
    source = BytesInMemory(bytes(data))
    try:
        table = read_table(source)
    except SafetensorsError:
        return
    for entry in table.values():
        if entry.dtype in FLOAT_TYPES:
            assert read_entry(source, entry).shape == entry.shape


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    write_model(folder, "llama-2", num_hidden_layers=1)
    return (folder / SINGLE).read_bytes()
