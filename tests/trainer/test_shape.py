"""A model made of a shape and chance goes through the trainer like a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.shape import SPECIALS


def test_a_shape_has_llamas_tokens_and_generates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.template import ChatTemplate, template_text

    text = tmp_path / "words.txt"
    text.write_text("the cat sat on the mat\n" * 20)
    folder = tmp_path / "model"
    assert main(["make-shape", "--like", "tiny", str(folder), "--text", str(text)]) == 0
    assert "168,256 random parameters shaped like tiny" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = len(tokenizer) - 256
    for offset, token in SPECIALS.items():
        assert tokenizer.convert_tokens_to_ids(token) == first + offset
    assert tokenizer.decode(tokenizer("the cat\n\nsät")["input_ids"][1:]) == "the cat\n\nsät"
    template = ChatTemplate(tokenizer, template_text("llama-3.1", tokenizer))
    assert template.end_of_turn == "<|eot_id|>"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert template.stop_token_ids(model.generation_config.eos_token_id) == tuple(
        first + offset for offset in (1, 8, 9)
    )
    assert main(["make-shape", "--like", "tiny", str(folder)]) == 3
    assert main(["make-shape", "--like", "huge", str(tmp_path / "other")]) == 3
    assert "llama-3.2-3b" in capsys.readouterr().err
