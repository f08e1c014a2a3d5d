from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.engine.text import TextStream
from server.step import Sampled
from server.types import FinishReason, SamplingParams
from tests.server.fakes import END, Utf8Decoder, encode


def sequence(
    name: str, prompt: int = 3, max_tokens: int = 4, index: int = 0, stop: tuple[str, ...] = ()
) -> Sequence:
    return Sequence(
        request_id=name,
        index=index,
        prompt_ids=tuple(range(1, prompt + 1)),
        params=SamplingParams(max_tokens=max_tokens, stop=stop),
        stop_token_ids={END},
        adapter=None,
        text=TextStream(Utf8Decoder(), stop),
    )


def say(scheduler: Scheduler, text: str = "x") -> list[str]:
    """One step in which every sampling row draws the first token of text; names of those that drew."""
    batch = scheduler.next_batch()
    assert batch is not None
    sampled = [Sampled(encode(text)[0]) if row.samples else None for row in batch.rows]
    return [s.request_id for s, _ in scheduler.commit(batch, sampled)]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(5, 30),
    st.integers(60, 120),
)
def test_everything_that_is_added_finishes_within_the_limits(
    sizes: list[tuple[int, int]], max_running: int, max_step_tokens: int, cache_tokens: int
) -> None:
    scheduler = Scheduler(Limits(max_running, max_step_tokens, cache_tokens))
    sequences = [sequence(str(i), prompt, answer) for i, (prompt, answer) in enumerate(sizes)]
    for s in sequences:
        scheduler.add(s)
    computed: dict[int, int] = {}
    steps = 0
    while (batch := scheduler.next_batch()) is not None:
        steps += 1
        assert steps < 5000, "no progress"
        assert 1 <= batch.num_tokens <= max_step_tokens
        assert len(batch.rows) <= max_running
        assert scheduler.reserved_tokens <= cache_tokens
        for row in batch.rows:
            assert row.start == (computed.get(row.slot, 0) if row.start else 0)
            computed[row.slot] = row.start + len(row.token_ids)
            assert computed[row.slot] <= row.capacity
        tokens = [Sampled(66) if row.samples else None for row in batch.rows]
        scheduler.commit(batch, tokens)
    assert [len(s.output_ids) for s in sequences] == [answer for _, answer in sizes]
    assert scheduler.num_running == scheduler.num_waiting == scheduler.reserved_tokens == 0


def test_running_rows_advance_while_a_long_prompt_is_computed_in_pieces() -> None:
    scheduler = Scheduler(Limits(max_running=2, max_step_tokens=8, cache_tokens=200))
    scheduler.add(sequence("short", prompt=2, max_tokens=30))
    say(scheduler)
    scheduler.add(sequence("long", prompt=50, max_tokens=2))
    drew = [say(scheduler) for _ in range(8)]
    assert all("short" in names for names in drew)
    assert ["long" in names for names in drew].index(True) == 7  # ceil(50 / 7) steps of 7 tokens


def test_sequences_start_in_the_order_they_came() -> None:
    scheduler = Scheduler(Limits(max_running=4, max_step_tokens=64, cache_tokens=20))
    scheduler.add(sequence("first", prompt=10, max_tokens=6))
    scheduler.add(sequence("big", prompt=14, max_tokens=6))
    scheduler.add(sequence("small", prompt=1, max_tokens=1))
    # "small" would fit beside "first", but must not overtake "big" for ever.
    assert say(scheduler) == ["first"]


def test_a_removed_request_gives_back_its_slot_and_its_tokens() -> None:
    scheduler = Scheduler(Limits(max_running=2, max_step_tokens=64, cache_tokens=100))
    for name, index in (("a", 0), ("a", 1), ("a", 2), ("b", 0)):
        scheduler.add(sequence(name, index=index))
    assert say(scheduler) == ["a", "a"]
    removed = scheduler.remove("a")
    assert sorted(s.slot for s in removed) == [-1, 0, 1]
    assert {s.finish_reason for s in removed} == {FinishReason.CANCELLED}
    assert say(scheduler) == ["b"]
    assert scheduler.remove("a") == []


def test_a_sequence_that_could_never_run_is_refused_at_the_door() -> None:
    scheduler = Scheduler(Limits(max_running=1, max_step_tokens=8, cache_tokens=10))
    with pytest.raises(ValueError, match="positions"):
        scheduler.add(sequence("huge", prompt=10, max_tokens=2))


def test_choices_of_one_seed_differ_and_repeat() -> None:
    seeds = [sequence("r", index=i).seed for i in range(4)]
    assert len(set(seeds)) == 4
    assert seeds == [sequence("other", index=i).seed for i in range(4)]
