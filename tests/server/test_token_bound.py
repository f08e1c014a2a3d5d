"""What a text's length tells of its tokens: never more than it has, and nothing where text may be left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ContextLengthError
from server.model.token_bound import UNKNOWN, token_bound
from server.model.token_bytes import byte_alphabet
from server.model.tokenizer import ChatTokenizer
from server.types import Message
from tests.models import byte_tokenizer
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import running
from tests.server.test_tokenizer import sentencepiece_style_tokenizer

LONGEST = len("<|endoftext|>")


def composing() -> Any:
    from tokenizers import normalizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def without_some_bytes() -> Any:
    """As SmolLM2 has it: what has no token is left out."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    described = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    for byte, character in ((0x04, "\u0104"), (0xA9, "©")):
        assert byte_alphabet()[character] == byte
        del described["model"]["vocab"][character]
    backend = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="x")


TOKENIZERS = [
    byte_tokenizer(),
    composing(),
    without_some_bytes(),
    sentencepiece_style_tokenizer(),
]
PIECES = st.sampled_from(
    ["a", "ab", " ", "▁", "▁▁", "e\u0301", "\u0301", "\u1fef", "\u212b", "\x04" * 20, "日", "<|endoftext|>", "</s>"]
)  # fmt: skip


@given(st.sampled_from(TOKENIZERS), st.lists(PIECES | st.text(max_size=3), max_size=30))
def test_no_text_has_fewer_tokens_than_its_length_tells(tokenizer: Any, pieces: list[str]) -> None:
    text = "".join(pieces)
    chat = ChatTokenizer(tokenizer)
    least = token_bound(chat.to_json()).least_tokens(text)
    assert least <= len(chat.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_text_of_the_longest_token_alone_is_told_well(tokenizer: Any) -> None:
    bound = token_bound(tokenizer.backend_tokenizer.to_str())
    assert LONGEST - 8 <= bound.longest <= 3 * (LONGEST + 1)
    assert bound.least_tokens("x" * 10 * bound.longest) == 10


@pytest.mark.model
def test_the_embedded_tokenizer_is_bounded_by_its_longest_token(embedded_model: Path) -> None:
    from transformers import AutoTokenizer

    chat = ChatTokenizer(AutoTokenizer.from_pretrained(embedded_model))
    bound = token_bound(chat.to_json())
    longest = max(range(49152), key=lambda i: len(chat.token_bytes(i)))
    assert bound.longest == len(chat.token_bytes(longest))
    text = chat.decode([longest]) * 100
    assert bound.least_tokens(text) == 100 <= len(chat.encode(text))


def _strips(backend: Any) -> None:
    from tokenizers import normalizers

    backend.normalizer = normalizers.Strip()


def _writes_what_is_absent(backend: Any) -> None:
    from tokenizers import normalizers

    backend.normalizer = normalizers.Replace("a", "\x04")


def _shortens(backend: Any) -> None:
    from tokenizers import normalizers

    backend.normalizer = normalizers.Replace("aa", "a")


def _removes(backend: Any) -> None:
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), backend.pre_tokenizer]
    )


def _swallows(backend: Any) -> None:
    from tokenizers import AddedToken

    backend.add_special_tokens([AddedToken("<mask>", rstrip=True)])


def _knows_no_bytes(backend: Any) -> None:
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Digits()


@pytest.mark.parametrize(
    "change", [_strips, _writes_what_is_absent, _shortens, _removes, _swallows, _knows_no_bytes]
)
def test_nothing_is_told_where_text_may_be_left_out(change: Callable[[Any], None]) -> None:
    backend = without_some_bytes().backend_tokenizer
    assert token_bound(backend.to_str()) != UNKNOWN
    change(backend)
    bound = token_bound(backend.to_str())
    assert bound == UNKNOWN
    assert bound.least_tokens("a " * 1000) == 0


def test_a_text_is_refused_only_when_it_must_be_too_long() -> None:
    chat = ChatTokenizer(byte_tokenizer(), "{{ messages[-1]['content'] }}")
    with pytest.raises(ContextLengthError, match="at least 11 tokens"):
        chat.encode("x" * (10 * LONGEST + 1), max_tokens=10)
    assert chat.encode("<|endoftext|>" * 10, max_tokens=10) == [0] * 10
    # What the template leaves out does not count; a forged token is more than one.
    long, short = Message("user", "x" * 1000), Message("user", "<|im_end|>" * 10)
    assert len(chat.encode_chat([long, short], max_tokens=10)) == 10 * len("<|im_end|>")
    with pytest.raises(ContextLengthError):
        chat.encode_chat([short, long], max_tokens=10)


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "@"}]}, "messages"),
        ("/v1/responses", {"input": "@"}, "input"),
        ("/v1/completions", {"prompt": "@"}, "prompt"),
    ],
)
def test_a_prompt_far_over_the_context_is_refused_untokenised(
    monkeypatch: pytest.MonkeyPatch, route: str, fields: dict[str, Any], param: str
) -> None:
    text = "x" * (256 * LONGEST + 1)
    filled = {
        name: text if value == "@" else [{"role": "user", "content": text}]
        for name, value in fields.items()
    }
    engine = FakeEngine()
    with running(engine) as server:
        answer = server.http.post(route, json={"model": "base", **filled})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert error["message"].startswith(
            "This model's maximum context length is 256 tokens. However, your messages resulted in at least 257"
            " tokens."
        )
        counted = server.http.post("/tokenize", json={"model": "base", "prompt": text})
        assert counted.json()["count"] >= len(text)
