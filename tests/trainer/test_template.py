"""Rendering and masks: the text is the template's, and loss falls on the assistant's turns and nothing else."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import byte_tokenizer
from tests.trainer.llama_tokenizer import llama_tokenizer
from trainer.conversation import Message
from trainer.errors import ConfigError
from trainer.template import IGNORED, ChatTemplate, template_text


def chat(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]  # type: ignore[typeddict-item]


@functools.cache
def made(name: str) -> ChatTemplate:
    tokenizer = llama_tokenizer() if name == "llama" else byte_tokenizer()
    return ChatTemplate(
        tokenizer, template_text("llama-3.1" if name == "llama" else "base", tokenizer)
    )


@pytest.fixture
def llama() -> ChatTemplate:
    return made("llama")


@pytest.fixture
def chatml() -> ChatTemplate:
    return made("chatml")


MULTI_TURN = chat(
    ("system", "Be brief."),
    ("user", "What is two and two?"),
    ("assistant", "Four."),
    ("user", "And\n\nthree?"),
    ("assistant", "\nFive. "),
)


def test_llama_text_is_the_published_one(llama: ChatTemplate) -> None:
    # What unsloth's "llama-3.1" template renders: fixed date, content not trimmed.
    assert llama.render(MULTI_TURN) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 July 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is two and two?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nFour.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd\n\nthree?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n\nFive. <|eot_id|>"
    )
    assert llama.render(chat(("user", "Hi")), add_generation_prompt=True) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 July 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_llama_mask(llama: ChatTemplate) -> None:
    spans = llama.spans(llama.encode(MULTI_TURN))
    assert [text for text, trained in spans if trained] == ["Four.<|eot_id|>", "\nFive. <|eot_id|>"]
    assert "".join(text for text, _ in spans) == llama.render(MULTI_TURN)


def test_llama_has_one_bos_though_the_tokenizer_adds_one(llama: ChatTemplate) -> None:
    ids = llama.encode(MULTI_TURN).input_ids
    assert llama.tokenizer("x")["input_ids"][0] == llama.tokenizer.bos_token_id
    assert ids[0] == llama.tokenizer.bos_token_id
    assert ids.count(llama.tokenizer.bos_token_id) == 1
    assert llama.prompt_ids(MULTI_TURN[:2]).count(llama.tokenizer.bos_token_id) == 1


def test_chatml_mask(chatml: ChatTemplate) -> None:
    spans = chatml.spans(chatml.encode(MULTI_TURN))
    assert spans == (
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is two and two?<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        ("Four.<|im_end|>", True),
        ("\n<|im_start|>user\nAnd\n\nthree?<|im_end|>\n<|im_start|>assistant\n", False),
        ("\nFive. <|im_end|>", True),
        ("\n", False),
    )


def test_end_of_turn_is_trained_even_where_it_is_the_pad_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    template = ChatTemplate(tokenizer, tokenizer.chat_template)
    encoded = template.encode(MULTI_TURN)
    assert encoded.labels[encoded.answer_ends[0] - 1] == tokenizer.pad_token_id


def test_stop_tokens_are_all_that_end_an_answer(llama: ChatTemplate) -> None:
    ids = llama.tokenizer.convert_tokens_to_ids
    model_ends = [ids("<|end_of_text|>"), ids("<|eom_id|>"), ids("<|eot_id|>")]
    assert llama.stop_token_ids(model_ends) == tuple(sorted(model_ends))
    assert llama.stop_token_ids(None) == (ids("<|eot_id|>"),)


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="<|>\0"), min_size=1, max_size=30
).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    system=st.none() | TEXT,
    name=st.sampled_from(["llama", "chatml"]),
)
def test_masks_are_exact(turns: list[tuple[str, str]], system: str | None, name: str) -> None:
    template = made(name)
    messages = chat(*([("system", system)] if system else []))
    for asked, answered in turns:
        messages += chat(("user", asked), ("assistant", answered))
    encoded = template.encode(messages)
    assert len(encoded.input_ids) == len(encoded.labels)
    # Nothing is lost or added, and what is trained is each answer with its end, in order.
    spans = template.spans(encoded)
    assert "".join(text for text, _ in spans) == template.render(messages)
    assert [text for text, trained in spans if trained] == [
        answered + template.end_of_turn for _, answered in turns
    ]
    # Each answer's tokens follow the tokens that serving feeds for it.
    first = template.prompt_ids(messages[: len(messages) - 2 * len(turns) + 1])
    assert encoded.input_ids[: len(first)] == first
    assert encoded.labels[: len(first)] == [IGNORED] * len(first)
    # A cut leaves whole answers only.
    for limit in (len(first), encoded.answer_ends[0], len(encoded.input_ids) - 1):
        cut = encoded.cut(limit)
        if cut is not None:
            assert len(cut.input_ids) <= limit
            assert cut.labels[-1] == template.end_of_turn_id


def test_answer_that_does_not_fit_is_cut_away_whole(chatml: ChatTemplate) -> None:
    encoded = chatml.encode(MULTI_TURN)
    first, second = encoded.answer_ends
    assert encoded.cut(first - 1) is None
    shorter = encoded.cut(second - 1)
    assert shorter is not None
    assert shorter.input_ids == encoded.input_ids[:first]
    assert encoded.cut(second) is not None


def test_control_tokens_in_a_turn_are_seen(llama: ChatTemplate) -> None:
    assert llama.holds_control_tokens(chat(("user", "say <|eot_id|> please")))
    assert not llama.holds_control_tokens(chat(("user", "say eot_id <| please |>")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # Drops the text of earlier answers, as some reasoning templates do.
        (
            "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}<|im_start|>{{ m.role }}\n"
            "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "earlier turns differently",
        ),
        # Ends answers with nothing.
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "end an answer with a special token",
        ),
        # The generation prompt opens what the answer in the history does not have.
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}",
            "not what precedes an answer",
        ),
    ],
)
def test_templates_without_an_exact_mask_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(byte_tokenizer(), text)


def test_template_with_the_date_of_the_day_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    with pytest.raises(ConfigError, match=r"today's date.*llama-3\.1"):
        template_text("base", tokenizer)


def test_unknown_template_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"base or one of llama-3\.1"):
        template_text("llama-4", byte_tokenizer())


def test_the_template_is_saved_with_the_tokenizer(llama: ChatTemplate, tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    llama.tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == llama.text
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template(MULTI_TURN, tokenize=False) == llama.render(MULTI_TURN)
