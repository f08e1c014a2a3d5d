from __future__ import annotations

from typing import Any

import pytest

from server.engine.rows import check_results
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.step import Batch, RowResult, Sampled
from server.types import Event, Failed, Finished, FinishReason, PromptScored, TokenLogprob
from tests.server.fakes import FakeAdapter, ScriptedRunner, encode
from tests.server.test_sequence import sequence


def scheduler(runner: ScriptedRunner | None = None, **limits: Any) -> Scheduler:
    """Blocks of 8 positions, as many as the runner has."""
    runner = runner or ScriptedRunner()
    limits = {"max_running": 4, "max_step_tokens": 64} | limits
    return Scheduler(Limits(**limits), num_blocks=runner.num_blocks, block_size=runner.block_size)


def step(scheduler: Scheduler, runner: ScriptedRunner) -> list[tuple[Sequence, Event]]:
    batch = scheduler.next_batch()
    assert batch is not None
    return scheduler.commit(batch, runner.step(batch))


def drew(said: list[tuple[Sequence, Event]]) -> list[str]:
    return [s.request_id for s, event in said if not isinstance(event, PromptScored)]


def run(scheduler: Scheduler, runner: ScriptedRunner, *sequences: Sequence) -> list[Finished]:
    """All of them to their ends; nothing is left behind."""
    ends: dict[int, Finished] = {}
    for s in sequences:
        scheduler.add(s)
    while scheduler.has_work:
        for s, event in step(scheduler, runner):
            if isinstance(event, Finished):
                ends[id(s)] = event
    assert scheduler.pool.num_used == 0
    return [ends[id(s)] for s in sequences]


def x(*_: Any) -> int:
    return encode("x")[0]


def test_running_rows_advance_while_a_long_prompt_is_computed_in_pieces() -> None:
    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner, max_step_tokens=8, prefill_tokens_beside_decoding=5)
    scheduled.add(sequence("short", prompt=2, max_tokens=30))
    step(scheduled, runner)
    scheduled.add(sequence("long", prompt=tuple(range(100, 150)), max_tokens=2))
    said = [drew(step(scheduled, runner)) for _ in range(10)]
    assert all("short" in names for names in said)
    assert ["long" in names for names in said].index(True) == 9  # 50 tokens, 5 in each step


def test_prompts_alone_take_the_whole_step() -> None:
    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner, max_step_tokens=50, prefill_tokens_beside_decoding=1)
    scheduled.add(sequence("a", prompt=tuple(range(40))))
    scheduled.add(sequence("b", prompt=tuple(range(100, 140))))
    assert drew(step(scheduled, runner)) == ["a"]
    assert [len(row.token_ids) for row in runner.batches[0].rows] == [40, 10]


def test_sequences_start_in_the_order_they_came() -> None:
    runner = ScriptedRunner(says=x, num_blocks=4)
    scheduled = scheduler(runner)
    scheduled.add(sequence("first", prompt=17, max_tokens=6))
    scheduled.add(sequence("big", prompt=tuple(range(100, 117)), max_tokens=6))
    scheduled.add(sequence("small", prompt=1, max_tokens=1))
    # "small" would fit beside "first", but must not overtake "big" for ever.
    assert drew(step(scheduled, runner)) == ["first"]
    assert (scheduled.stats.running, scheduled.stats.waiting) == (1, 2)


def test_a_removed_request_gives_back_its_blocks() -> None:
    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner, max_running=2)
    first = sequence("a")
    for s in (first, sequence("a", index=1, leader=first), sequence("b"), sequence("a", index=2)):
        scheduled.add(s)
    step(scheduled, runner)
    removed = scheduled.remove("a")
    assert sorted(s.index for s in removed) == [0, 1, 2]
    assert {s.finish_reason for s in removed} == {FinishReason.CANCELLED}
    assert scheduled.remove("a") == []
    assert drew(step(scheduled, runner)) == ["b"]
    scheduled.remove("b")
    assert scheduled.pool.num_used == 0
    assert not scheduled.has_work


def test_a_sequence_that_could_never_run_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="3 of 2 blocks"):
        scheduler(ScriptedRunner(num_blocks=2)).add(sequence(prompt=16, max_tokens=2))


def test_the_largest_that_fits_runs_to_its_end() -> None:
    runner = ScriptedRunner(says=x, num_blocks=2)
    [end] = run(scheduler(runner), runner, sequence(prompt=10, max_tokens=7))
    assert end.completion_tokens == 7


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="starve"):
        Limits(max_running=9, max_step_tokens=8)
    for wrong in ({"max_running": 0}, {"prefill_tokens_beside_decoding": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Limits(**{"max_running": 1, "max_step_tokens": 8} | wrong)


# --- what is shared ---


def test_the_next_turn_computes_only_what_is_new() -> None:
    runner = ScriptedRunner(script=lambda _: "an answer")
    scheduled = scheduler(runner)
    first = sequence(prompt=tuple(encode("question one")), max_tokens=40)
    run(scheduled, runner, first)
    before = runner.num_computed
    turn = tuple(encode("question one" + "an answer" + " and question two"))
    second = sequence(prompt=turn, max_tokens=1)
    run(scheduled, runner, second)
    assert second.cached_tokens == len("question one") + len("an answer")
    assert runner.num_computed - before == len(" and question two")
    stats = scheduled.stats
    assert (stats.prefix_queries, stats.prefix_hits) == (12 + len(turn), second.cached_tokens)


@pytest.mark.parametrize("prompt", [1, 5, 8, 13, 16, 40])
def test_choices_of_one_request_compute_their_prompt_once(prompt: int) -> None:
    runner = ScriptedRunner(says=lambda row, *_: 50 + row.seed % 50)
    scheduled = scheduler(runner, draft_tokens_per_step=0, max_step_tokens=7)
    choices = [sequence(prompt=tuple(range(prompt)), max_tokens=3)]
    choices += [
        sequence(prompt=tuple(range(prompt)), max_tokens=3, index=i, leader=choices[0])
        for i in (1, 2, 3)
    ]
    run(scheduled, runner, *choices)
    # Each later choice computes the last token of the prompt, whose logits it needs; all compute two of their own.
    assert runner.num_computed == prompt + 3 + 4 * 2
    assert [s.cached_tokens for s in choices] == [0, prompt - 1, prompt - 1, prompt - 1]


def test_others_need_not_wait_behind_choices_that_wait_for_their_prompt() -> None:
    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner, max_step_tokens=20)
    first = sequence("a", prompt=tuple(range(15)))
    scheduled.add(first)
    scheduled.add(sequence("a", prompt=tuple(range(15)), index=1, leader=first))
    scheduled.add(sequence("b", prompt=2))
    assert drew(step(scheduled, runner)) == ["a", "b"]


def test_scopes_and_adapters_share_nothing() -> None:
    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner)
    one, two = FakeAdapter("a@1", "one"), FakeAdapter("b@1", "two")
    renamed = FakeAdapter("c@2", "two")  # the same weights under another name are the same
    for cached in (0, 19):
        for adapter, scope in [(None, ""), (None, "key"), (one, ""), (two, ""), (two, "key")]:
            s = sequence(prompt=20, adapter=adapter, cache_scope=scope)
            run(scheduled, runner, s)
            assert s.cached_tokens == cached
    s = sequence(prompt=20, adapter=renamed)
    run(scheduled, runner, s)
    assert s.cached_tokens == 19


# --- prompt log-probabilities ---


@pytest.mark.parametrize("max_step_tokens", [4, 5, 64])
def test_the_prompts_tokens_are_scored_once_each_before_the_answer(max_step_tokens: int) -> None:
    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner, max_step_tokens=max_step_tokens)
    run(scheduled, runner, sequence(prompt=21))  # in the cache, and of no use here
    first = sequence("s", prompt=21, prompt_logprobs=0, max_tokens=2)
    other = sequence("s", prompt=21, prompt_logprobs=0, max_tokens=2, index=1, leader=first)
    events: dict[int, list[Event]] = {0: [], 1: []}
    scheduled.add(first)
    scheduled.add(other)
    before = runner.num_computed
    while scheduled.has_work:
        for s, event in step(scheduled, runner):
            events[s.index].append(event)
    for said in events.values():
        scored = said[0]
        assert isinstance(scored, PromptScored)
        assert [(p.token_id, p.logprob) for p in scored.logprobs] == [
            (i + 1, -float(i)) for i in range(1, 21)
        ]
        assert not any(isinstance(event, PromptScored) for event in said[1:])
    assert first.cached_tokens == 0
    assert (
        runner.num_computed - before == 21 + 1 + 2
    )  # the second choice takes the first one's scores


def test_no_tokens_may_be_asked_for() -> None:
    runner = ScriptedRunner()
    scheduled = scheduler(runner, max_step_tokens=8)
    s = sequence(prompt=20, prompt_logprobs=1, max_tokens=0)
    scheduled.add(s)
    said = [event for _ in range(3) for _, event in step(scheduled, runner)]
    assert isinstance(said[0], PromptScored)
    assert len(said[0].logprobs) == 19
    assert said[1] == Finished(0, "", FinishReason.LENGTH, 0)
    assert not scheduled.has_work


# --- speculation ---


def test_text_that_repeats_takes_fewer_steps_and_is_the_same() -> None:
    def answer(drafts: int) -> tuple[list[int], int]:
        runner = ScriptedRunner(script=lambda _: "one two three, " * 12)
        scheduled = scheduler(runner, draft_tokens_per_step=drafts)
        s = sequence(prompt=tuple(encode("say it")), max_tokens=150)
        run(scheduled, runner, s)
        stats = scheduled.stats
        assert stats.drafts_accepted <= stats.drafted
        assert stats.steps == len(s.output_ids) - stats.drafts_accepted
        return s.output_ids, stats.steps

    without, many = answer(0)
    with_drafts, few = answer(8)
    assert without == with_drafts
    assert few < 0.5 * many


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 12])
def test_drafts_fill_a_step_up_to_the_limit_and_no_further(rows: int) -> None:
    runner = ScriptedRunner(says=x, num_blocks=200)
    scheduled = scheduler(runner, max_running=12, draft_tokens_per_step=8)
    for i in range(rows):
        scheduled.add(sequence(str(i), prompt=i + 1, max_tokens=60))
    while scheduled.has_work:
        step(scheduled, runner)
    assert scheduled.stats.drafted > 0 or rows >= 8
    for batch in runner.batches:
        if all(row.draw > 0 for row in batch.rows):
            assert batch.num_tokens <= max(8, len(batch.rows))


def test_a_row_with_a_grammar_has_no_drafts_and_draws_what_it_allows() -> None:
    class OnlyB:
        def allowed(self) -> memoryview:
            words = bytearray(32)
            words[encode("b")[0] // 8] |= 1 << encode("b")[0] % 8
            return memoryview(words)

        def advance(self, token_id: int) -> None:
            assert token_id == encode("b")[0]

    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner)
    s = sequence(max_tokens=30, constraint=OnlyB())
    run(scheduled, runner, s)
    assert s.output_ids == encode("b" * 30)
    assert scheduled.stats.drafted == 0


def test_end_tokens_are_banned_up_to_the_minimum_also_when_drafted() -> None:
    for drafts in (0, 8):
        runner = ScriptedRunner(script=lambda _: "aaaaaaaa")
        s = sequence(prompt=tuple(encode("aaaaaa")), max_tokens=30, min_tokens=15)
        run(scheduler(runner, draft_tokens_per_step=drafts), runner, s)
        assert s.output_ids == [*encode("aaaaaaaa" + "~" * 7), 0]


# --- when blocks run out ---


def test_the_youngest_is_sent_back_and_loses_nothing() -> None:
    runner = ScriptedRunner(says=lambda _, text, draw: 33 + (sum(text) + draw) % 60, num_blocks=6)
    scheduled = scheduler(runner, draft_tokens_per_step=0)
    old, young = (sequence(n, prompt=tuple(encode(n * 8)), max_tokens=25, logprobs=0) for n in "ab")
    scheduled.add(old)
    scheduled.add(young)
    said: dict[str, list[Event]] = {"a": [], "b": []}
    order = []
    while scheduled.has_work:
        for s, event in step(scheduled, runner):
            said[s.request_id].append(event)
            order += [s.request_id] if isinstance(event, Finished) else []
    assert scheduled.stats.preemptions > 0
    assert order == ["a", "b"]
    for s in (old, young):
        events = said[s.request_id]
        assert [t for e in events for t in e.token_ids] == s.output_ids  # type: ignore[union-attr]
        assert [p.logprob for e in events for p in e.logprobs] == [-float(i) for i in range(25)]  # type: ignore[union-attr]
        alone = sequence(s.request_id, prompt=s.prompt_ids, max_tokens=25)
        fresh = ScriptedRunner(says=runner.says)
        run(scheduler(fresh), fresh, alone)
        assert alone.output_ids == s.output_ids


def test_who_was_sent_back_is_the_first_to_return() -> None:
    runner = ScriptedRunner(says=x, num_blocks=6)
    scheduled = scheduler(runner, max_running=2, draft_tokens_per_step=0)
    for name in "abc":
        scheduled.add(sequence(name, prompt=tuple(encode(name * 8)), max_tokens=25))
    spoke = []
    while scheduled.has_work:
        spoke += [name for name in drew(step(scheduled, runner)) if name not in spoke[-1:]]
    assert scheduled.stats.preemptions > 0
    assert spoke.index("c") > max(at for at, name in enumerate(spoke) if name == "a")
    first_return = spoke.index("b", spoke.index("b") + 1)
    assert first_return < spoke.index("c")


def test_nobody_is_let_in_who_would_take_the_next_block_of_one_that_runs() -> None:
    runner = ScriptedRunner(says=x, num_blocks=4)
    scheduled = scheduler(runner)
    scheduled.add(sequence("a", prompt=8, max_tokens=10))
    step(scheduled, runner)
    scheduled.add(
        sequence("b", prompt=tuple(range(100, 116)), max_tokens=9)
    )  # would take both others
    while scheduled.has_work:
        step(scheduled, runner)
    assert scheduled.stats.preemptions == 0


def test_drafts_throw_nobody_out() -> None:
    runner = ScriptedRunner(says=x, num_blocks=4)
    scheduled = scheduler(runner)
    run(
        scheduled,
        runner,
        sequence("a", prompt=8, max_tokens=9),
        sequence("b", prompt=8, max_tokens=9),
    )
    assert scheduled.stats.drafted > 0
    assert scheduled.stats.preemptions == 0


# --- faults ---


@pytest.mark.parametrize(
    "results",
    [
        [],
        [RowResult()],
        [RowResult((Sampled(1), Sampled(2)))],
        [RowResult((Sampled(1),), (TokenLogprob(1, -1.0, 1),))],
        [RowResult((Sampled(1),)), RowResult((Sampled(1),))],
    ],
)
def test_results_that_do_not_fit_are_refused(results: list[RowResult]) -> None:
    scheduled = scheduler()
    scheduled.add(sequence())
    batch = scheduled.next_batch()
    assert batch is not None
    check_results(batch, [RowResult((Sampled(5),))])
    with pytest.raises(RuntimeError):
        check_results(batch, results)


def test_an_answer_whose_text_cannot_be_decoded_fails_alone() -> None:
    runner = ScriptedRunner(says=x)
    scheduled = scheduler(runner)
    bad, good = sequence("bad"), sequence("good")

    def fail(*_: Any, **__: Any) -> str:
        raise ValueError("secret")

    bad.text.push = fail  # type: ignore[method-assign]
    scheduled.add(bad)
    scheduled.add(good)
    said = step(scheduled, runner)
    failures = [(s, event) for s, event in said if isinstance(event, Failed)]
    assert [s.request_id for s, _ in failures] == ["bad"]
    assert "secret" not in str(failures[0][1].error)
    scheduled.remove("bad")
    while scheduled.has_work:
        step(scheduled, runner)
    assert good.output_ids == encode("xxxx")
    assert scheduled.pool.num_used == 0


def test_after_a_failed_step_nothing_that_it_may_have_spoiled_is_found() -> None:
    failing = False

    def fail(_: Batch) -> None:
        if failing:
            raise RuntimeError

    runner = ScriptedRunner(says=x, before_step=fail)
    scheduled = scheduler(runner, max_step_tokens=12)
    scheduled.add(sequence("a", prompt=30))
    step(scheduled, runner)
    failing = True
    batch = scheduled.next_batch()
    assert batch is not None
    with pytest.raises(RuntimeError):
        runner.step(batch)
    assert scheduled.requests_in_step() == {"a"}
    scheduled.remove("a", keep_tails=False)
    failing = False
    again = sequence("b", prompt=30)
    run(scheduled, runner, again)
    assert again.cached_tokens == 8  # the full block of the step that went well
