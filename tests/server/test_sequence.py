from __future__ import annotations

import pytest

from server.types import FinishReason
from tests.server.fakes import END, encode
from tests.server.test_scheduler import sequence


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "stop", "text", "reason"),
    [
        ([*encode("hi"), END], 10, (), "hi", FinishReason.STOP),
        (encode("hello"), 3, (), "hel", FinishReason.LENGTH),
        ([*encode("hi"), END], 3, (), "hi", FinishReason.STOP),  # the end token is the last allowed
        (encode("a END b"), 20, ("END",), "a ", FinishReason.STOP),
        (encode("a END"), 5, ("END",), "a ", FinishReason.STOP),  # complete at the very limit
        ([*encode("a EN"), END], 20, ("END",), "a EN", FinishReason.STOP),  # held, then set free
        (encode("a EN"), 4, ("END",), "a EN", FinishReason.LENGTH),
        (encode("é"), 1, (), "", FinishReason.LENGTH),  # half a character is not shown
    ],
)
def test_how_an_answer_ends(
    tokens: list[int], max_tokens: int, stop: tuple[str, ...], text: str, reason: FinishReason
) -> None:
    answer = sequence("r", max_tokens=max_tokens, stop=stop)
    shown = ""
    for token in tokens:
        shown += answer.append(token)
        if answer.is_finished:
            break
    assert (shown, answer.finish_reason) == (text, reason)
