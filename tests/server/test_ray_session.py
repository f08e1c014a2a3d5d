"""Which requests are sent to the same engine: what the caller says, else how the conversation begins."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.ray_serve.session import PROMPT_CHARACTERS, session_of

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Why is the sky blue?"}
TURNS = [{"role": "assistant", "content": "Rayleigh."}, {"role": "user", "content": "And red?"}]


def session(body: Any, key_id: str = "", **headers: str) -> str | None:
    return session_of(headers, key_id, json.dumps(body).encode())


def test_the_turns_of_a_conversation_are_one_session() -> None:
    first = {"model": "base", "messages": [SYSTEM, QUESTION], "temperature": 0.2, "stream": True}
    later = {"model": "base", "messages": [SYSTEM, QUESTION, *TURNS], "max_tokens": 9}
    assert session(first) == session(later)
    parts = {"role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]}
    assert session({"model": "base", "messages": [parts]}) == session(
        {"model": "base", "messages": [parts, *TURNS]}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"model": "tone", "messages": [SYSTEM, QUESTION]},  # the cache is apart by adapter
        {"model": "base", "messages": [QUESTION]},
        {"model": "base", "messages": [SYSTEM, TURNS[1]]},
        {"model": "base", "messages": [SYSTEM, QUESTION], "cache_salt": "x"},
        {"model": "base", "messages": [SYSTEM, QUESTION], "tools": [{"type": "function"}]},
    ],
)
def test_what_shares_no_prefix_is_another_session(other: dict[str, Any]) -> None:
    assert session({"model": "base", "messages": [SYSTEM, QUESTION]}) != session(other)


def test_the_caller_may_say_what_belongs_together() -> None:
    one, two = ({"model": "base", "messages": [m]} for m in (SYSTEM, QUESTION))
    assert session(one) != session(two)
    named = {"prompt_cache_key": "tenant"}
    assert session(one | named) == session(two | named)
    assert session(one, **{"x-session-id": "s"}) == session(two, **{"x-session-id": "s"})
    # But no caller can say it for another's key.
    assert session(one | named, key_id="a") != session(one | named, key_id="b")


def test_prompts_and_responses_have_sessions_too() -> None:
    document = "x" * PROMPT_CHARACTERS
    assert session({"prompt": document + "a"}) == session({"prompt": document + "b"})
    assert session({"prompt": [1, 2]}) != session({"prompt": [1, 3]})
    first = {"input": "Hello", "instructions": "Be brief."}
    turns = [{"role": "user", "content": "Hello"}, *TURNS]
    assert session(first) != session(first | {"instructions": "Be long."})
    assert session({"input": turns}) == session({"input": turns[:1]})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "base"}'])
def test_where_nothing_says_so_any_engine_will_do(body: bytes) -> None:
    assert session_of({}, "", body) is None


@pytest.mark.parametrize(
    "fields", [{"messages": [1, None]}, {"messages": {}}, {"prompt": 3}, {"prompt_cache_key": 3}]
)
def test_a_body_that_will_be_refused_is_no_error_here(fields: dict[str, Any]) -> None:
    session(fields)
