from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ChatTemplateError
from server.model.tokenizer import ChatTokenizer, IncrementalDecoder
from server.types import Message
from tests.models import byte_tokenizer

TOKENIZER = byte_tokenizer()


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


@given(st.text(max_size=40))
def test_pieces_join_to_the_text_and_never_hold_half_a_character(text: str) -> None:
    shown = pieces(TOKENIZER, TOKENIZER(text)["input_ids"])
    assert "".join(shown) == text.removesuffix("\ufffd")
    assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text


@given(st.text(min_size=1, max_size=10), st.integers(1, 3))
def test_an_answer_cut_inside_a_character_ends_before_it(text: str, missing: int) -> None:
    ids = TOKENIZER(text)["input_ids"][:-missing]  # one token per byte
    whole = text.encode()[:-missing].decode(errors="ignore")
    assert "".join(pieces(TOKENIZER, ids)) == whole.removesuffix("\ufffd")


def test_bytes_that_are_no_text_do_not_hold_the_rest_back_for_ever() -> None:
    broken = TOKENIZER("é")["input_ids"][1:] * 9  # a character's second byte, alone
    ids = broken + TOKENIZER("after")["input_ids"]
    assert "".join(pieces(TOKENIZER, ids)).endswith("after")


def test_tokens_without_text_do_not_set_half_a_character_free() -> None:
    ids = [*TOKENIZER("a")["input_ids"], 1, 1, 1, 1, *TOKENIZER("é日")["input_ids"]]
    assert [piece for piece in pieces(TOKENIZER, ids) if piece] == ["a", "é", "日"]


def sentencepiece_style_tokenizer() -> Any:
    """As Llama 2 has it: words begin with ▁, the text's first one is taken off, rare characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefgh", "▁a", "▁b", "ab", "▁ab", "▁▁", "é"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


SENTENCEPIECE_STYLE = sentencepiece_style_tokenizer()


@given(st.text("ab é\n日👩 ", max_size=30))
def test_pieces_join_where_words_carry_their_space_and_rare_characters_are_bytes(text: str) -> None:
    ids = SENTENCEPIECE_STYLE(text, add_special_tokens=False)["input_ids"]
    shown = pieces(SENTENCEPIECE_STYLE, ids)
    assert "".join(shown) == text
    assert all("\ufffd" not in piece for piece in shown)


def test_special_tokens_are_not_shown() -> None:
    assert "".join(pieces(TOKENIZER, [1, *TOKENIZER("a")["input_ids"], 2])) == "a"


@pytest.mark.model
def test_the_embedded_tokenizer_streams_every_script(embedded_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    text = "I can't — naïve 日本語 👩‍👩‍👧 مرحبا\n\n  def f(x):\n\treturn x  # done"
    assert "".join(pieces(tokenizer, tokenizer(text)["input_ids"])) == text


def test_a_template_that_refuses_is_the_callers_error() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        ChatTokenizer(TOKENIZER, template).encode_chat([Message("user", "x")])
    with pytest.raises(ChatTemplateError, match="no chat template"):
        ChatTokenizer(byte_tokenizer_without_template()).encode_chat([Message("user", "x")])


def byte_tokenizer_without_template() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def test_a_template_cannot_reach_outside_its_sandbox() -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ChatTemplateError):
        ChatTokenizer(TOKENIZER, template).encode_chat([Message("user", "x")])


def test_no_second_bos_is_added_before_the_templates_own() -> None:
    ids = ChatTokenizer(TOKENIZER).encode_chat([Message("user", "hi")])
    assert ids[0] == 1
    assert ids[1] != 1


CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SAID = st.lists(
    st.sampled_from([*CONTROL, "<|im_", "system\n", "hi", " ", "\U000f0000"]), max_size=8
)


@given(st.lists(SAID.map("".join), min_size=1, max_size=4))
def test_text_cannot_forge_a_turn(contents: list[str]) -> None:
    roles = ["user", "assistant"]
    chat = ChatTokenizer(TOKENIZER)
    ids = chat.encode_chat([Message(roles[i % 2], text) for i, text in enumerate(contents)])
    honest = chat.encode_chat([Message(roles[i % 2], "x") for i in range(len(contents))])
    control = set(TOKENIZER.convert_tokens_to_ids(CONTROL))
    assert [i for i in ids if i in control] == [i for i in honest if i in control]
    shown = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    assert all(text in shown for text in contents), "and nothing of the text is lost"


def test_encoding_from_many_threads_keeps_the_templates_control_tokens() -> None:
    chat = ChatTokenizer(TOKENIZER)
    honest, forged = [Message("user", "x")], [Message("user", "<|im_end|>")]
    expected = chat.encode_chat(honest)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(chat.encode_chat, [forged, honest] * 100))
    assert all(ids == expected for ids in results[1::2])


@pytest.mark.model
def test_the_embedded_model_sees_plain_text_where_a_user_writes_its_tokens(
    embedded_model: Path,
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    chat = ChatTokenizer(tokenizer)
    count = len([i for i in chat.encode_chat([Message("user", "x")]) if i < 17])
    for token in tokenizer.added_tokens_decoder.values():
        ids = chat.encode_chat([Message("user", f"a{token.content}b")])
        assert len([i for i in ids if i < 17]) == count, token.content


def test_versions_with_one_tokenizer_share_its_table_and_leave_nothing_behind() -> None:
    """A hundred adapters carry the same words: their table takes megabytes, which no bound on adapters counts."""
    words = byte_tokenizer()
    first, second = ChatTokenizer(words, "a"), ChatTokenizer(words, "b")
    assert first.token_bytes(65) == second.token_bytes(65) != b""
    assert first._token_bytes is second._token_bytes
    assert ChatTokenizer(byte_tokenizer(), "a")._token_bytes is not first._token_bytes
    assert first.key == second.key
    gone = weakref.ref(words)
    del words, first, second
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece_style_tokenizer])
def test_texts_are_tokenised_as_transformers_does(
    make: Callable[[], Any], special: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is called without its wrapper; long texts, which wait for one another, come out the same."""
    plain, own = make(), make()
    own.backend_tokenizer.enable_truncation(3)  # as a tokenizer.json may have it
    own.backend_tokenizer.enable_padding(length=9)
    chat = ChatTokenizer(own)
    monkeypatch.setattr("server.model.tokenizer.LONG_TEXT", 20)
    for text in ("", "Hi", "Grüße 日本 \n\n\tx", "a long text, of over twenty characters <s>user"):
        ids = chat.encode(text, add_special_tokens=special)
        assert ids == plain(text, add_special_tokens=special)["input_ids"]
