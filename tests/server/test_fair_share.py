"""Tenants share the engine evenly: one's hundred requests do not starve another's one."""

from __future__ import annotations

import zlib
from collections import Counter

from hypothesis import event, given, settings
from hypothesis import strategies as st

from server.engine.fair_share import FairShare
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.types import Finished
from tests.server.fakes import ScriptedRunner, encode
from tests.server.test_scheduler import drew, scheduler, step
from tests.server.test_sequence import sequence


def test_whoever_comes_is_counted_like_the_least_served_of_those_that_are_there() -> None:
    shares = FairShare()
    shares.enter("a")
    shares.charge("a", 100)
    shares.enter("b")
    assert shares.served("b") == 100
    shares.charge("b", 20)
    shares.enter("c")
    assert shares.served("c") == 100


def test_going_and_coming_back_gains_nothing() -> None:
    shares = FairShare()
    shares.enter("a")
    shares.enter("b")
    shares.charge("a", 100)
    shares.leave("a")
    shares.enter("a")
    assert (shares.served("a"), shares.served("b")) == (100, 0)


def test_what_one_had_while_the_other_was_away_is_not_held_against_it() -> None:
    shares = FairShare()
    shares.enter("a")
    shares.charge("a", 10**6)
    shares.leave("a")
    shares.enter("b")
    shares.enter("a")
    assert shares.served("a") == shares.served("b")


def test_tenants_that_left_leave_nothing_behind() -> None:
    shares = FairShare()
    for number in range(1000):
        shares.enter(str(number))
        shares.charge(str(number), number)
        shares.leave(str(number))
    assert len(shares._served) <= 1


def numbered(name: str, tenant: str, length: int, max_tokens: int) -> Sequence:
    """No two prompts begin alike, so that nothing is found in the prefix cache."""
    start = encode("a")[0]
    own = [start + int(digit) for digit in f"{zlib.crc32(f'{tenant} {name}'.encode()) % 10**6:06d}"]
    return sequence(name, tuple((own * length)[:length]), tenant=tenant, max_tokens=max_tokens)


def test_one_request_overtakes_a_hundred_of_another_key_but_none_of_its_own() -> None:
    runner = ScriptedRunner(says=lambda *_: 5, num_blocks=500)
    scheduled = scheduler(runner, max_running=2, max_step_tokens=8)
    for number in range(100):
        scheduled.add(numbered(f"many {number}", "many", 6, 3))
    step(scheduled, runner)
    scheduled.add(numbered("few 0", "few", 6, 3))
    scheduled.add(numbered("few 1", "few", 6, 3))
    ended: list[str] = []
    while len(ended) < 8:
        ended += [s.request_id for s, e in step(scheduled, runner) if isinstance(e, Finished)]
    few = [ended.index(f"few {n}") for n in range(2)]
    assert few == sorted(few)
    many = [name for name in ended if name.startswith("many")]
    assert many == sorted(many), "within one key, first come first served"


def test_a_short_prompt_need_not_wait_for_the_end_of_anothers_long_one() -> None:
    runner = ScriptedRunner(says=lambda *_: 5, num_blocks=500)
    scheduled = scheduler(runner, max_step_tokens=8)
    scheduled.add(numbered("long", "one", 800, 3))
    for _ in range(3):
        step(scheduled, runner)
    scheduled.add(numbered("short", "two", 8, 3))
    steps = 0
    while "short" not in drew(step(scheduled, runner)):
        steps += 1
    assert steps <= 2
    names: list[str] = []
    while "long" not in names:
        names += drew(step(scheduled, runner))


sizes = st.tuples(st.integers(1, 40), st.integers(1, 12))  # prompt, answer


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(sizes, min_size=1, max_size=5), min_size=1),
    st.integers(1, 4),
    st.integers(4, 24),
    st.integers(0, 200),
    st.integers(1, 40),
)
def test_a_keys_only_request_waits_a_bounded_number_of_tokens_however_many_others_wait(
    others: dict[str, list[tuple[int, int]]],
    max_running: int,
    max_step_tokens: int,
    at_step: int,
    prompt: int,
) -> None:
    """Two hundred requests of other keys wait; what runs may have to end, and each key may have one turn before."""
    runner = ScriptedRunner(says=lambda *_: 5, num_blocks=2000)
    scheduled = Scheduler(
        Limits(max_running, max(max_step_tokens, max_running)), num_blocks=2000, block_size=8
    )
    tenants = sorted(others)
    for number in range(200):
        tenant = tenants[number % len(tenants)]
        length, answer = others[tenant][number % len(others[tenant])]
        scheduled.add(numbered(str(number), tenant, length, answer))
    largest = max(length + answer for asked in others.values() for length, answer in asked)
    lone = numbered("lone", "lone", prompt, 4)
    computed = 0
    for number in range(10_000):
        if number == at_step:
            scheduled.add(lone)
            computed = 0
        batch = scheduled.next_batch()
        if lone.table is not None:
            break
        if batch is not None:
            computed += batch.num_tokens
            scheduled.commit(batch, runner.step(batch))
    event(f"it waited for {computed // 100 * 100} tokens or more")
    assert computed <= max_running * largest * (1 + len(tenants))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=20, max_size=30),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=20, max_size=30),
    st.integers(2, 6),
)
def test_while_two_keys_always_wait_neither_is_ahead_by_more_than_what_can_run_at_once(
    one: list[tuple[int, int]], two: list[tuple[int, int]], max_running: int
) -> None:
    runner = ScriptedRunner(says=lambda *_: 5, num_blocks=2000)
    scheduled = Scheduler(Limits(max_running, 64, 64, 0), num_blocks=2000, block_size=8)
    for tenant, asked in (("one", one), ("two", two)):
        for number, (length, answer) in enumerate(asked):
            scheduled.add(numbered(f"{tenant} {number}", tenant, length, answer))
    computed: Counter[str] = Counter()
    while {s.tenant for s in scheduled._waiting} == {"one", "two"}:
        batch = scheduled.next_batch()
        assert batch is not None
        for s, row in zip(scheduled._in_step, batch.rows, strict=True):
            computed[s.tenant] += len(row.token_ids)
        scheduled.commit(batch, runner.step(batch))
        assert abs(computed["one"] - computed["two"]) <= 2 * max_running * 52
