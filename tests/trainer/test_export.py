"""What is exported is loaded by what it was exported for, and answers the same.

llama.cpp lives in an environment of its own, which `make test-exports` makes; without it those tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.models import write_peft_adapter
from trainer.__main__ import main
from trainer.shape import make_shape

PROMPT = "the cat sat"
LLAMA_CPP = ROOT / ".venv-llamacpp" / "bin" / "python"
needs_llama_cpp = pytest.mark.skipif(
    not LLAMA_CPP.exists(), reason="llama-cpp-python is not installed: make test-exports"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int], list[int]]:
    """Base, adapter, the prompt's ids and what the adapter on its base answers greedily."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("export")
    base, adapter = folder / "base", folder / "adapter"
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat, and the dog sat on the cat\n" * 9)
    make_shape("tiny", base, text=text)
    # transformers' reader of GGUF knows no llama3 rope; and wider weights decide greedy choices.
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    (base / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    model.save_pretrained(base)
    write_peft_adapter(base, adapter, use_rslora=True)
    ids = AutoTokenizer.from_pretrained(base)(PROMPT)["input_ids"]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    plain = greedy(AutoModelForCausalLM.from_pretrained(base), ids)
    answer = greedy(tuned, ids)
    assert answer != plain
    return base, adapter, ids, answer


def greedy(model: Any, ids: list[int]) -> list[int]:
    import torch

    output = model.generate(
        input_ids=torch.tensor([ids]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    answer: list[int] = output[0, len(ids) :].tolist()
    return answer


def run_export(base: Path, adapter: Path, *targets: str) -> int:
    return main(["export", str(adapter), "--base", str(base), *targets])


def test_the_merged_model_answers_as_the_adapter_does(trained: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter, ids, answer = trained
    assert run_export(base, adapter, "--merged", str(tmp_path / "merged")) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert greedy(merged, ids) == answer
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(PROMPT)["input_ids"] == ids
    small = ["--merged", str(tmp_path / "small"), "--dtype", "bfloat16"]
    assert run_export(base, adapter, *small) == 0
    assert str(AutoModelForCausalLM.from_pretrained(tmp_path / "small").dtype) == "torch.bfloat16"


def test_the_gguf_answers_as_the_adapter_does(trained: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter, ids, answer = trained
    assert run_export(base, adapter, "--gguf", str(tmp_path / "tuned.gguf")) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tuned.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tuned.gguf")
    assert tokenizer(PROMPT, add_special_tokens=False)["input_ids"] == ids[1:]
    assert greedy(model, ids) == answer


def test_the_lora_gguf_holds_the_same_update(trained: Any, tmp_path: Path) -> None:
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    base, adapter, _, _ = trained
    both = ["--lora-gguf", str(tmp_path / "lora.gguf"), "--gguf", str(tmp_path / "tuned.gguf")]
    assert run_export(base, adapter, *both) == 0
    lora = gguf.GGUFReader(tmp_path / "lora.gguf")
    tuned = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "tuned.gguf").tensors}
    parts = {tensor.name: tensor.data for tensor in lora.tensors}
    alpha = float(lora.fields["adapter.lora.alpha"].contents())
    plain = load_file(base / "model.safetensors")
    # The rows of v are in the same order in both formats: base + scale · B A is the merged weight.
    for layer in range(2):
        down, up = (parts[f"blk.{layer}.attn_v.weight.lora_{side}"] for side in "ab")
        update = alpha / down.shape[0] * up @ down
        weight = plain[f"model.layers.{layer}.self_attn.v_proj.weight"].astype(np.float32)
        np.testing.assert_allclose(tuned[f"blk.{layer}.attn_v.weight"], weight + update, atol=1e-4)
    # Those of q are not: the adapter's must be in the model's order.
    down, up = (parts[f"blk.0.attn_q.weight.lora_{side}"] for side in "ab")
    run_export(base, adapter, "--merged", str(tmp_path / "merged"))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    rows = np.abs(alpha / down.shape[0] * up @ down).sum(axis=1)
    key = "model.layers.0.self_attn.q_proj.weight"
    change = np.abs(merged[key] - plain[key].astype(np.float32)).sum(axis=1)
    order = change.reshape(4, 2, 8).swapaxes(1, 2).reshape(-1)
    np.testing.assert_allclose(rows, order, rtol=1e-3, atol=1e-4)


@pytest.mark.model
def test_the_tokenizer_of_the_embedded_model_has_a_name_in_gguf(embedded_model: Path) -> None:
    from trainer.gguf_file import pre_tokenizer_name

    state = json.loads((embedded_model / "tokenizer.json").read_bytes())
    assert pre_tokenizer_name(state) == "gpt-2"


# Digits, spaces, other scripts, contractions and control tokens: where tokenizers differ.
TEXT = "It's 1234  and 5.\n\n\tZürich, 東京 🙂 <|im_end|>they'll"


def llama_cpp(model: Path, ids: list[int], lora: Path | None = None) -> list[int]:
    """Twelve greedy tokens after `ids`, as llama.cpp computes them."""
    return run_llama_cpp(model, ids, lora)[0]


def run_llama_cpp(model: Path, ids: list[int], lora: Path | None = None) -> list[list[int]]:
    """Those, and the tokens of TEXT."""
    script = Path(__file__).parent / "llama_cpp_greedy.py"
    done = subprocess.run(
        [LLAMA_CPP, script, model, json.dumps(ids), TEXT, *([lora] if lora else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[list[int]] = json.loads(done.stdout)
    return answers


def write_base(base: Path, target: Path) -> None:
    """The base alone as GGUF, as llama.cpp's own converter would make it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.gguf_file import write_model

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoTokenizer.from_pretrained(base),
    )
    arrays = (
        (name, parameter.detach().float().numpy()) for name, parameter in model.named_parameters()
    )
    write_model(target, "base", model.config, arrays, tokenizer, tokenizer.eos_token_id, "float32")


@needs_llama_cpp
def test_llama_cpp_answers_as_the_adapter_does(trained: Any, tmp_path: Path) -> None:
    base, adapter, ids, answer = trained
    targets = ["--gguf", str(tmp_path / "tuned.gguf"), "--lora-gguf", str(tmp_path / "lora.gguf")]
    assert run_export(base, adapter, *targets) == 0
    assert llama_cpp(tmp_path / "tuned.gguf", ids) == answer
    write_base(base, tmp_path / "base.gguf")
    assert llama_cpp(tmp_path / "base.gguf", ids) != answer
    assert llama_cpp(tmp_path / "base.gguf", ids, tmp_path / "lora.gguf") == answer


@needs_llama_cpp
@pytest.mark.model
def test_llama_cpp_answers_as_an_adapter_of_the_embedded_model_does(
    embedded_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    messages = [{"role": "user", "content": "Name three colours."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    write_peft_adapter(embedded_model, tmp_path / "adapter", use_rslora=True)
    base = AutoModelForCausalLM.from_pretrained(embedded_model)
    plain = greedy(base, ids)
    answer = greedy(PeftModel.from_pretrained(base, tmp_path / "adapter"), ids)
    assert answer != plain
    targets = ["--gguf", str(tmp_path / "tuned.gguf"), "--lora-gguf", str(tmp_path / "lora.gguf")]
    assert run_export(embedded_model, tmp_path / "adapter", *targets) == 0
    expected = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert run_llama_cpp(tmp_path / "tuned.gguf", ids) == [answer, expected]
    write_base(embedded_model, tmp_path / "base.gguf")
    assert llama_cpp(tmp_path / "base.gguf", ids) == plain
    assert llama_cpp(tmp_path / "base.gguf", ids, tmp_path / "lora.gguf") == answer


def test_mistakes_are_told(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter, _, _ = trained
    assert main(["export", "nobody", "--merged", str(tmp_path / "m")]) == 3
    assert "There is no adapter 'nobody'" in capsys.readouterr().err
    assert run_export(base, adapter) == 3
    assert run_export(base, adapter, "--merged", str(tmp_path)) == 3
    assert "exists already" in capsys.readouterr().err


def test_llama3s_rope_factors_are_those_of_transformers() -> None:
    import numpy as np
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from trainer.gguf_file import rope_factors
    from trainer.shape import ROPE

    config = LlamaConfig(
        hidden_size=3072,
        num_attention_heads=24,
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters=dict(ROPE),
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / rope_factors(config), scaled.numpy(), rtol=1e-5)
