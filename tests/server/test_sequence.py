from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.sequence import Sequence
from server.engine.text import TextStream
from server.step import Sampled
from server.types import Delta, Finished, FinishReason, SamplingParams, TokenLogprob
from tests.server.fakes import END, Utf8Decoder, encode


def sequence(
    name: str = "r",
    prompt: int | tuple[int, ...] = 3,
    *,
    index: int = 0,
    leader: Sequence | None = None,
    constraint: Any = None,
    cache_scope: str = "",
    adapter: Any = None,
    tenant: str = "",
    **params: Any,
) -> Sequence:
    """prompt: its tokens, or how many."""
    sampling = SamplingParams(**{"max_tokens": 4} | params)
    return Sequence(
        request_id=name,
        index=index,
        prompt_ids=tuple(range(1, prompt + 1)) if isinstance(prompt, int) else prompt,
        params=sampling,
        stop_token_ids={END},
        adapter=adapter,
        text=TextStream(Utf8Decoder(), sampling.stop, include_stop=sampling.include_stop),
        leader=leader,
        constraint=constraint,
        cache_scope=cache_scope,
        tenant=tenant,
    )


def say(answer: Sequence, tokens: list[int], per_step: int = 1) -> list[Delta | Finished]:
    """The events of an answer that draws these tokens, several in a step."""
    events = []
    for at in range(0, len(tokens), per_step):
        drawn = [Sampled(t, TokenLogprob(t, -1.0, 1)) for t in tokens[at : at + per_step]]
        events.append(answer.take(tuple(drawn)))
        if answer.is_finished:
            break
    return events


BANG = encode("!")[0]


@pytest.mark.parametrize(
    ("tokens", "params", "text", "reason", "stopped_by"),
    [
        ([*encode("hi"), END], {}, "hi", FinishReason.STOP, None),
        (encode("hello"), {"max_tokens": 3}, "hel", FinishReason.LENGTH, None),
        # the end token is the last allowed
        ([*encode("hi"), END], {"max_tokens": 3}, "hi", FinishReason.STOP, None),
        (encode("a END b"), {"stop": ("END",)}, "a ", FinishReason.STOP, "END"),
        (encode("a END b"), {"stop": ("END",), "include_stop": True}, "a END", FinishReason.STOP, "END"),
        # complete at the very limit
        (encode("a END"), {"max_tokens": 5, "stop": ("END",)}, "a ", FinishReason.STOP, "END"),
        # held, then set free
        ([*encode("a EN"), END], {"stop": ("END",)}, "a EN", FinishReason.STOP, None),
        (encode("a EN"), {"max_tokens": 4, "stop": ("END",)}, "a EN", FinishReason.LENGTH, None),
        (encode("é"), {"max_tokens": 1}, "", FinishReason.LENGTH, None),  # half a character is not shown
        (encode("hi!x"), {"stop_token_ids": (BANG,)}, "hi", FinishReason.STOP, BANG),
        (encode("hi!x"), {"stop_token_ids": (BANG,), "max_tokens": 3}, "hi", FinishReason.STOP, BANG),
        ([*encode("hi!")], {"ignore_eos": True, "stop_token_ids": (BANG,)}, "hi", FinishReason.STOP, BANG),
        ([END], {"ignore_eos": True, "stop_token_ids": (END,)}, "", FinishReason.STOP, END),
        # stop strings wait for min_tokens, too; the second is complete at the third token
        (encode("..a"), {"min_tokens": 3, "stop": (".",), "max_tokens": 3}, "..a", FinishReason.LENGTH, None),
        (encode("..."), {"min_tokens": 3, "stop": (".",)}, "..", FinishReason.STOP, "."),
        (encode("ab"), {"min_tokens": 2, "stop": ("ab",)}, "", FinishReason.STOP, "ab"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("per_step", [1, 2, 5])
def test_how_an_answer_ends(
    tokens: list[int],
    params: dict[str, Any],
    text: str,
    reason: FinishReason,
    stopped_by: str | int | None,
    per_step: int,
) -> None:
    answer = sequence(**{"max_tokens": 20} | params)
    events = say(answer, tokens, per_step)
    assert "".join(event.text for event in events) == text
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.stop) == (reason, stopped_by)


@given(st.text("ab.", max_size=20), st.integers(1, 4), st.integers(1, 12))
def test_tokens_drawn_together_are_the_same_answer(
    text: str, per_step: int, max_tokens: int
) -> None:
    """What speculation draws behind the end is dropped; tokens and logprobs come once each, in order."""
    tokens = [*encode(text), END]

    def answer(per_step: int) -> tuple[str, list[int], list[int], Finished]:
        events = say(sequence(max_tokens=max_tokens, stop=("ab.",)), tokens, per_step)
        end = events[-1]
        assert isinstance(end, Finished)
        ids = [t for e in events for t in e.token_ids]
        assert [scored.token_id for e in events for scored in e.logprobs] == ids
        assert end.completion_tokens == len(ids)
        return "".join(e.text for e in events), ids, [end.completion_tokens], end

    assert answer(per_step)[:3] == answer(1)[:3]
    assert (answer(per_step)[3].reason, answer(per_step)[3].stop) == (
        answer(1)[3].reason,
        answer(1)[3].stop,
    )


def test_a_grammar_takes_every_token_but_the_last() -> None:
    class Grammar:
        def __init__(self) -> None:
            self.taken: list[int] = []

        def allowed(self) -> memoryview:
            raise NotImplementedError

        def advance(self, token_id: int) -> None:
            self.taken.append(token_id)

    grammar = Grammar()
    say(sequence(constraint=grammar, max_tokens=9), [*encode("abc"), END])
    assert grammar.taken == encode("abc")


def test_choices_of_one_seed_differ_and_repeat() -> None:
    seeds = [sequence("r", index=i).seed for i in range(4)]
    assert len(set(seeds)) == 4
    assert seeds == [sequence("other", index=i).seed for i in range(4)]


def test_only_end_tokens_are_banned_and_only_where_there_is_a_minimum() -> None:
    assert sequence().banned_ids == ()
    assert sequence(min_tokens=1, stop_token_ids=(7,)).banned_ids == (END, 7)
    assert sequence(min_tokens=1, ignore_eos=True).banned_ids == ()
