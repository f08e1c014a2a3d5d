"""GGUF files, as llama.cpp's converter lays them out, give transformers' parameters."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import ModelLoadError
from server.model.checkpoint import open_checkpoint
from server.model.config import read_config
from server.model.loader import load_base
from server.model.rope import rotary_table
from tests.families import FAMILIES, make_model
from tests.gguf_files import write_gguf
from tests.server.test_checkpoint import assert_holds

# Llama 3.2 ties; the rest of a GGUF's mistral is a llama with another name.
GGUF_FAMILIES = [name for name in FAMILIES if name != "mistral"]


@pytest.mark.parametrize("name", GGUF_FAMILIES)
def test_every_family_is_read_back_value_by_value(tmp_path: Path, name: str) -> None:
    model = make_model(name)
    path = tmp_path / "model.gguf"
    write_gguf(path, model)
    checkpoint = open_checkpoint(path)
    assert_holds(checkpoint, model)
    expected = read_config(model.config.to_dict())
    assert checkpoint.config.rms_norm_eps == pytest.approx(expected.rms_norm_eps, rel=1e-7)
    for field in ("num_kv_heads", "head_dim", "max_positions", "qkv_bias", "qk_norm", "tied"):
        assert getattr(checkpoint.config, field) == getattr(expected, field)
    ours = rotary_table(checkpoint.settings, checkpoint.config, 512)
    theirs = rotary_table(model.config.to_dict(), expected, 512)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_bfloat16_stays_as_it_is_and_float16_is_widened(tmp_path: Path) -> None:
    model = make_model("llama-2")
    for kind, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        path = tmp_path / f"{kind}.gguf"
        write_gguf(path, model, kind)
        checkpoint = open_checkpoint(path)
        for name, parameter in model.named_parameters():
            values = checkpoint.read(name)
            expected = parameter.detach()
            if parameter.dim() == 2:
                expected = expected.to(dtype).float()
                if kind == "BF16":
                    assert values.dtype == np.uint16
                    values = (values.astype(np.uint32) << 16).view(np.float32)
            assert values.dtype == np.float32
            assert np.array_equal(values, expected.numpy())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_values_are_those_of_the_gguf_package(tmp_path: Path, kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    model = make_model("qwen2", hidden_size=64, intermediate_size=96)
    path = tmp_path / "model.gguf"
    write_gguf(path, model, kind)
    checkpoint = open_checkpoint(path)
    dtype = GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        expected = parameter.detach().numpy()
        if expected.ndim == 2:
            expected = quants.dequantize(quants.quantize(expected, dtype), dtype)
        assert np.array_equal(checkpoint.read(name), expected)


@pytest.mark.model
def test_the_embedded_file_is_the_folder_that_transformers_makes_of_it(
    embedded_model: Path,
) -> None:
    from demo.model import gguf_file

    ours, theirs = open_checkpoint(gguf_file()), open_checkpoint(embedded_model)
    assert ours.names == theirs.names
    assert ours.config == theirs.config
    for name in ours.names:
        assert np.array_equal(ours.read(name), theirs.read(name)), name
    tables = [rotary_table(c.settings, c.config, 8192) for c in (ours, theirs)]
    assert np.array_equal(tables[0], tables[1])


@pytest.mark.model
def test_the_embedded_files_tokenizer_is_the_folders(embedded_model: Path) -> None:
    from demo.model import gguf_file
    from server.types import Message

    ours, theirs = load_base(str(gguf_file())), load_base(str(embedded_model))
    assert ours.stop_token_ids == theirs.stop_token_ids
    for text in (
        "Hello, world!",
        "naïve 日本語 👩‍👩‍👧\n\n  def f(x): return 12345",
        "<|im_end|> x",
    ):
        messages = [Message("system", "Be brief."), Message("user", text)]
        assert ours.tokenizer.encode_chat(messages) == theirs.tokenizer.encode_chat(messages)


def test_the_long_waves_of_llama_3_are_taken_from_the_file(tmp_path: Path) -> None:
    """transformers' reader drops them; without them the model is another one from a few thousand tokens on."""
    model = make_model("llama-3.2")
    write_gguf(tmp_path / "model.gguf", model)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    plain = checkpoint.settings | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    with_factors = rotary_table(checkpoint.settings, checkpoint.config, 512)
    assert np.abs(with_factors[0] - rotary_table(plain, checkpoint.config, 512)[0]).max() > 0.1


def test_scalings_that_metadata_names(tmp_path: Path) -> None:
    model = make_model("qwen2")
    write_gguf(
        tmp_path / "yarn.gguf",
        model,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=128,
    )
    checkpoint = open_checkpoint(tmp_path / "yarn.gguf")
    fields = model.config.to_dict()
    fields["rope_parameters"] |= {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    ours = rotary_table(checkpoint.settings, checkpoint.config, 256)
    assert np.array_equal(ours, rotary_table(fields, read_config(fields), 256))


def test_a_window_caps_the_context(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", make_model("mistral"), attention__sliding_window=64)
    assert open_checkpoint(tmp_path / "m.gguf").config.max_positions == 64


@pytest.mark.parametrize(
    ("name", "metadata", "reason"),
    [
        ("qwen2", {"attention__sliding_window": 64}, "use_sliding_window"),
        ("qwen2", {"rope__scaling__type": "longrope"}, "'longrope' is not served"),
        ("llama-3.2", {"rope__scaling__type": "linear"}, "together with"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, name: str, metadata: dict[str, Any], reason: str
) -> None:
    write_gguf(tmp_path / "m.gguf", make_model(name), **metadata)
    with pytest.raises(ModelLoadError, match=reason):
        open_checkpoint(tmp_path / "m.gguf")


def cut(size: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:size]


def replace_at(offset: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        return data[:offset] + struct.pack(layout, value) + data[offset + struct.calcsize(layout) :]

    return change


def rename(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda data: data.replace(old, new)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut(3), "within its header"),
        (cut(2000), "within its header"),
        (cut(-100), "is damaged: it ends at byte .*, within output_norm"),
        (lambda data: b"GGML" + data[4:], "not a GGUF file"),
        (replace_at(4, "<I", 1), "version 1"),
        (replace_at(8, "<Q", 2**40), "damaged|within its header|dimensions"),
        (replace_at(16, "<Q", 2**40), "damaged|within its header|type"),
        (replace_at(24, "<Q", 2**63), "within its header"),
        (rename(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"), "lacks the tensor model.layers.0"),
        (rename(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"), "two tensors named"),
        (rename(b"general.architecture", b"general.architectura"), "None are not served"),
        (rename(b"qwen2", b"gemma"), "'gemma' are not served"),
        (rename(b"qwen2.block_count", b"qwen2.block_Count"), "num_hidden_layers=None"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, make_model("qwen2"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelLoadError, match=reason):
        open_checkpoint(path)


def test_cut_anywhere_it_is_refused_and_never_read_beyond_its_end(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, make_model("qwen2", num_hidden_layers=1))
    data = path.read_bytes()
    for size in [*range(1, 600, 7), *range(600, len(data), 4099)]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelLoadError):
            open_checkpoint(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_is_changed_in_a_header_it_is_read_whole_or_refused(
    small_file: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(small_file.read_bytes())
    for at, value in changes:
        data[at] = value
    path = small_file.with_name("changed.gguf")
    path.unlink(missing_ok=True)  # a map of the last one may still be alive: not into its file
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path)
    except ModelLoadError:
        return
    for name in checkpoint.names:
        assert checkpoint.read(name).shape == checkpoint.shape(name)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    write_gguf(path, make_model("llama-3.2", num_hidden_layers=1), "F16")
    return path
