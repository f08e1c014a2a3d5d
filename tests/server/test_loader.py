"""The base as the server gets it: name, context, stop tokens, and what is said when it cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.errors import ModelLoadError
from server.model.loader import load_base
from server.types import Message
from tests.conftest import ROOT
from tests.families import make_model, write_model
from tests.gguf_files import write_gguf


def test_a_folder_is_a_base(tiny_model: Path) -> None:
    base = load_base(str(tiny_model))
    assert base.id == "tiny-model"
    assert base.max_context == 512
    assert base.stop_token_ids == {2}
    assert base.cos.shape == base.sin.shape == (512, 8)
    assert base.cos.dtype == np.float32
    assert base.tokenizer.encode_chat([Message("user", "hi")])[0] == 1
    assert load_base(str(tiny_model), base_id="me/mine").id == "me/mine"


def test_a_gguf_file_is_a_base(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf", make_model("qwen3"))
    base = load_base(str(tmp_path / "small.gguf"))
    assert base.id == "small.gguf"
    assert base.stop_token_ids == {2}
    assert base.tokenizer.encode_chat([Message("user", "hi")])[0] == 1


def test_the_context_is_what_is_asked_for_but_no_longer_than_trained(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_base(str(tiny_model), 100).max_context == 100
    assert not caplog.records
    assert load_base(str(tiny_model), 100000).max_context == 512
    assert "512 tokens, not 100000" in caplog.text


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / file
        fields = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(fields | changes))

    return apply


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit("generation_config.json", eos_token_id=[5, 7]), {2, 5, 7}),
        (edit("generation_config.json", eos_token_id=None), {2}),
        (lambda folder: (folder / "generation_config.json").unlink(), {2}),
        (edit("tokenizer_config.json", eos_token="<|endoftext|>"), {0, 2}),
    ],
)
def test_every_way_to_name_an_end_of_text_ends_an_answer(
    tmp_path: Path, change: Callable[[Path], None], expected: set[int]
) -> None:
    write_model(tmp_path, "llama-2")
    change(tmp_path)
    assert load_base(str(tmp_path)).stop_token_ids == expected


def no_ends(folder: Path) -> None:
    for file in ("generation_config.json", "config.json"):
        edit(file, eos_token_id=None)(folder)
    edit("tokenizer_config.json", eos_token=None)(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_ends, "no end-of-text token"),
        (edit("generation_config.json", eos_token_id=[999]), "999 is not in its vocabulary"),
        (edit("generation_config.json", eos_token_id=["2"]), "'2' is not in its vocabulary"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer cannot be read"),
        (edit("config.json", model_type="gpt2"), "'gpt2' are not served"),
        (lambda folder: (folder / "config.json").unlink(), "not a model"),
    ],
)
def test_a_base_that_cannot_be_served_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = tmp_path / "broken"
    write_model(folder, "llama-2")
    damage(folder)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load_base(str(folder))
    assert "broken" in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, "llama-2", vocab_size=100)
    with pytest.raises(ModelLoadError, match="no embedding"):
        load_base(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/model", "no folder at /nowhere/model"),
        ("./nowhere", "no folder"),
        ("nowhere.gguf", "no GGUF file"),
        ("someone/some-model", "not in the local cache and the hub cannot be reached"),
        ("not a name!", "neither a folder here nor a hub id"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_do(source: str, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load_base(source)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_torch_is_not_imported(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    source = tiny_model
    if kind == "gguf":
        source = tmp_path / "m.gguf"
        write_gguf(source, make_model("llama-3.2"), "F16")
    program = f"""
import sys
from pathlib import Path
from server.model.catalogue import VolumeCatalogue
from server.model.digest_cache import cached_weights_digest
from server.model.loader import load_base
from server.types import Message
base = load_base({str(source)!r})
digest = cached_weights_digest(base.checkpoint, 2, Path({str(tmp_path / "cache")!r}))
catalogue = VolumeCatalogue(base, None, weights_digest=digest, max_context=64, created=1)
model = catalogue.find("base")
decoder = model.text_decoder()
for token in model.encode_chat([Message("user", "hi <|im_end|>")]):
    decoder.push(token)
for name in base.checkpoint.names:
    base.checkpoint.read(name)
print([name for name in sys.modules if name.split(".")[0] in ("torch", "peft", "safetensors")])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_hub_id_is_served_from_the_librarys_cache_without_a_network(
    tmp_path: Path, tiny_model: Path
) -> None:
    """The cache as huggingface_hub lays it out, in a process of its own: the library looks once where it is."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    program = """
from server.model.loader import load_base
base = load_base("someone/tiny")
print(base.id, base.max_context, len(base.checkpoint.names))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["someone/tiny", "512", "20"]
