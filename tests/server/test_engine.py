from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from server.engine.engine import MAX_FAILED_STEPS, Engine, Generation
from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from server.step import Batch
from server.types import (
    Delta,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    PromptScored,
    SamplingParams,
)
from tests.server.fakes import FakeModel, ScriptedRunner, encode


def request(
    prompt: str,
    max_tokens: int = 50,
    n: int = 1,
    stop: tuple[str, ...] = (),
    tenant: str = "",
) -> GenerationRequest:
    return GenerationRequest(
        id="chatcmpl-x",
        model=FakeModel(),
        prompt_ids=tuple(encode(prompt)),
        params=SamplingParams(max_tokens=max_tokens, stop=stop),
        n=n,
        tenant=tenant,
    )


@asynccontextmanager
async def running(
    runner: ScriptedRunner,
    max_running: int = 4,
    max_waiting: int = 4,
    max_context: int = 200,
    max_waiting_tokens: int = 10_000,
) -> AsyncIterator[Engine]:
    limits = Limits(max_running, max_step_tokens=16)
    engine = Engine(
        runner,
        limits,
        max_context=max_context,
        max_waiting=max_waiting,
        max_waiting_tokens=max_waiting_tokens,
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


async def read(generation: Generation) -> tuple[dict[int, str], dict[int, FinishReason]]:
    texts: dict[int, str] = {}
    reasons = {}
    async for event in generation:
        assert isinstance(event, Delta | Finished), event
        texts[event.index] = texts.get(event.index, "") + event.text
        if isinstance(event, Finished):
            reasons[event.index] = event.reason
    return texts, reasons


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


def test_many_requests_at_once_each_get_their_own_answer() -> None:
    async def test() -> None:
        runner = ScriptedRunner(script=lambda prompt: f"<{prompt}>")
        async with running(runner, max_waiting=40) as engine:
            prompts = [f"question {i} é" + "." * i for i in range(30)]
            results = await asyncio.gather(*(read(engine.submit(request(p))) for p in prompts))
        assert [texts[0] for texts, _ in results] == [f"<{p}>" for p in prompts]
        assert max(len(batch.rows) for batch in runner.batches) == 4
        assert runner.threads == {"engine"}
        assert engine.stats.blocks_used == 0

    run(test)


def test_choices_come_separately_and_each_ends_once() -> None:
    async def test() -> None:
        async with running(ScriptedRunner()) as engine:
            generation = engine.submit(request("abc", n=3))
            ends = [e async for e in generation if isinstance(e, Finished)]
        assert sorted(e.index for e in ends) == [0, 1, 2]
        assert {e.completion_tokens for e in ends} == {4}  # three letters and the end token

    run(test)


def test_a_cancelled_request_frees_its_slot_and_leaves_its_neighbours_alone() -> None:
    async def test() -> None:
        runner = ScriptedRunner(
            script=lambda prompt: "x" * 150 if prompt == "long" else prompt,
            before_step=lambda _: time.sleep(0.002),
        )
        async with running(runner, max_running=1) as engine:
            long = engine.submit(request("long", max_tokens=150))
            waiting = engine.submit(request("never runs"))
            last = engine.submit(request("last"))
            assert isinstance(await long.next_event(), Delta)
            waiting.cancel()
            long.cancel()
            long.cancel()
            assert (await read(last))[0] == {0: "last"}
            await until(lambda: engine.stats.running + engine.stats.waiting == 0)
            assert engine.stats.blocks_used == 0
        computed = [row.token_ids for batch in runner.batches for row in batch.rows]
        assert tuple(encode("never runs")) not in computed

    run(test)


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def test() -> None:
        gate = threading.Event()
        runner = ScriptedRunner(before_step=lambda _: gate.wait(10))
        async with running(runner, max_running=1, max_waiting=2) as engine:
            accepted = [engine.submit(request("abc")) for _ in range(3)]
            with pytest.raises(OverloadedError) as refusal:
                engine.submit(request("abc"))
            assert refusal.value.retry_after > 0
            gate.set()
            for generation in accepted:
                assert (await read(generation))[0] == {0: "abc"}
            assert (await read(engine.submit(request("abc"))))[0] == {0: "abc"}

    run(test)


def test_waiting_prompts_are_bounded_in_tokens_too() -> None:
    async def test() -> None:
        gate = threading.Event()
        runner = ScriptedRunner(before_step=lambda _: gate.wait(10))
        async with running(
            runner, max_running=1, max_waiting=9, max_context=500, max_waiting_tokens=50
        ) as engine:
            accepted = [engine.submit(request("runs"))]
            await until(lambda: engine.stats.waiting_tokens == 0)
            accepted.append(engine.submit(request("x" * 60)))  # alone, any length may wait
            with pytest.raises(
                OverloadedError, match="prompts of 60 tokens are waiting"
            ) as refusal:
                engine.submit(request("y"))
            assert refusal.value.retry_after > 0
            # The other keys' callers get in, each with one.
            accepted.append(engine.submit(request("z" * 60, tenant="other")))
            with pytest.raises(OverloadedError, match="prompts of 120 tokens"):
                engine.submit(request("y", tenant="other"))
            accepted[-1].cancel()
            gate.set()
            for generation in accepted[:2]:
                await read(generation)
            await until(lambda: engine.stats.waiting_tokens == 0)
            assert (await read(engine.submit(request("abc"))))[0] == {0: "abc"}

    run(test)


def test_a_queue_that_one_key_fills_has_a_place_for_another() -> None:
    async def test() -> None:
        gate = threading.Event()
        runner = ScriptedRunner(before_step=lambda _: gate.wait(10))
        async with running(runner, max_running=1, max_waiting=9) as engine:
            accepted = [engine.submit(request("abc", tenant="many")) for _ in range(10)]
            with pytest.raises(OverloadedError):
                engine.submit(request("abc", tenant="many"))
            accepted += [engine.submit(request("abc", tenant="few")) for _ in range(8)]
            with pytest.raises(OverloadedError):
                engine.submit(request("abc", tenant="few"))
            gate.set()
            for generation in accepted:
                assert (await read(generation))[0] == {0: "abc"}

    run(test)


def test_a_request_that_does_not_fit_is_refused_before_it_costs_anything() -> None:
    async def test() -> None:
        runner = ScriptedRunner()
        async with running(runner, max_context=20) as engine:
            with pytest.raises(ContextLengthError, match="maximum context length is 20 tokens"):
                engine.submit(request("x" * 15, max_tokens=6))
            assert (await read(engine.submit(request("x" * 15, max_tokens=5))))[0] == {0: "xxxxx"}
        assert runner.batches

    run(test)


def test_a_failing_step_fails_its_requests_and_no_others() -> None:
    async def test() -> None:
        def fail_on_poison(batch: Batch) -> None:
            if any(encode("!")[0] in row.token_ids for row in batch.rows):
                raise RuntimeError("secret detail")

        runner = ScriptedRunner(before_step=fail_on_poison)
        async with running(runner) as engine:
            bad = engine.submit(request("!", n=2))
            events = [event async for event in bad]
            assert len(events) == 1
            assert isinstance(events[0], Failed)
            assert isinstance(events[0].error, EngineError)
            assert "secret" not in str(events[0].error)
            assert (await read(engine.submit(request("good"))))[0] == {0: "good"}
            assert engine.failure is None
            assert engine.stats.blocks_used == 0

    run(test)


def test_an_engine_that_cannot_go_on_tells_everyone_and_refuses_the_next() -> None:
    async def test() -> None:
        def fail(_: Batch) -> None:
            raise RuntimeError

        async with running(
            ScriptedRunner(before_step=fail), max_running=1, max_waiting=9
        ) as engine:
            generations = [engine.submit(request("abc")) for _ in range(MAX_FAILED_STEPS + 3)]
            for generation in generations:
                events = [event async for event in generation]
                assert len(events) == 1
                assert isinstance(events[0], Failed)
            assert engine.failure is not None
            with pytest.raises(EngineDeadError):
                engine.submit(request("abc"))

    run(test)


def test_stopping_ends_every_request_with_a_reason() -> None:
    async def test() -> None:
        runner = ScriptedRunner(script=lambda _: "x" * 100, before_step=lambda _: time.sleep(0.01))
        async with running(runner, max_running=1) as engine:
            generations = [engine.submit(request("abc", max_tokens=100)) for _ in range(3)]
            await generations[0].next_event()
            await asyncio.to_thread(engine.stop)
            for generation in generations:
                last = [event async for event in generation][-1]
                assert isinstance(last, Failed)
                assert isinstance(last.error, UnavailableError)
            with pytest.raises(UnavailableError):
                engine.submit(request("abc"))
            assert engine.stats.running + engine.stats.waiting == 0

    run(test)


class Unremovable(Scheduler):
    """A bug of ours, outside a step."""

    def remove(self, request_id: str, *, keep_tails: bool = True) -> list[Sequence]:
        raise RuntimeError


def test_a_failure_outside_a_step_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed request is told, and so is one that came in the same moment as a cancellation."""
    monkeypatch.setattr("server.engine.engine.Scheduler", Unremovable)

    async def failed_step() -> None:
        def fail(_: Batch) -> None:
            raise RuntimeError

        async with running(ScriptedRunner(before_step=fail)) as engine:
            assert isinstance(await engine.submit(request("abc")).next_event(), Failed)
            assert engine.failure is not None
            assert engine.stats.running + engine.stats.waiting == 0

    async def cancellation() -> None:
        gate, begun = threading.Event(), threading.Event()

        def wait(_: Batch) -> None:
            begun.set()
            gate.wait(10)

        async with running(ScriptedRunner(before_step=wait)) as engine:
            first = engine.submit(request("abc"))
            await asyncio.to_thread(begun.wait)
            first.cancel()
            second = engine.submit(request("def"))
            gate.set()
            assert isinstance(await second.next_event(), Failed)

    run(failed_step)
    run(cancellation)


def test_an_empty_prompt_is_refused_and_costs_nobody_else_anything() -> None:
    async def test() -> None:
        async with running(ScriptedRunner()) as engine:
            with pytest.raises(InvalidRequestError, match="empty prompt"):
                engine.submit(request(""))
            assert (await read(engine.submit(request("abc"))))[0] == {0: "abc"}

    run(test)


def test_a_prompt_that_is_too_long_alone_is_told_its_own_length() -> None:
    async def test() -> None:
        async with running(ScriptedRunner(), max_context=20) as engine:
            with pytest.raises(ContextLengthError, match="your messages resulted in 20 tokens"):
                engine.submit(request("x" * 20, max_tokens=1))

    run(test)


def test_what_a_failed_step_was_to_copy_is_not_found_later() -> None:
    async def test() -> None:
        def fail_on_poison(batch: Batch) -> None:
            if any(encode("!")[0] in row.token_ids for row in batch.rows):
                raise RuntimeError

        # Of the second request's three blocks one is the end of the first, given away while it is being copied.
        async with running(ScriptedRunner(before_step=fail_on_poison, num_blocks=3)) as engine:
            for prompt in ("hello", "hello" + "!" * 15, "hello you"):
                events = [event async for event in engine.submit(request(prompt, max_tokens=1))]
                assert isinstance(events[-1], Failed if "!" in prompt else Finished)

    run(test)


def test_a_request_larger_than_the_cache_is_refused() -> None:
    async def test() -> None:
        async with running(ScriptedRunner(num_blocks=3)) as engine:
            with pytest.raises(ContextLengthError, match="maximum context length is 24 tokens"):
                engine.submit(request("x" * 15, max_tokens=10))
            assert (await read(engine.submit(request("x" * 15, max_tokens=9))))[0] == {0: "x" * 9}

    run(test)


def test_the_numbers_are_true_at_every_moment() -> None:
    async def test() -> None:
        gate = threading.Semaphore(0)

        def wait(_: Batch) -> None:
            gate.acquire(timeout=10)

        runner = ScriptedRunner(before_step=wait)
        async with running(runner, max_running=2) as engine:
            generations = [engine.submit(request("abc")) for _ in range(5)]
            await until(lambda: engine.stats.running == 2)
            assert engine.stats.waiting == 3
            generations[4].cancel()
            gate.release()
            await until(lambda: engine.stats.steps == 1 and engine.stats.waiting == 2)
            for _ in range(100):
                gate.release()
            for generation in generations[:4]:
                await read(generation)
            stats = engine.stats
            assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
            assert stats.generation_tokens == 4 * 4
            assert stats.prompt_tokens == 4 * 3
            assert stats.blocks_cached > 0

    run(test)


def test_the_whole_of_an_answer_is_told() -> None:
    """Prompt logprobs first, then every token with its text and logprob, then how it ended."""

    async def test() -> None:
        async with running(ScriptedRunner()) as engine:
            asked = request("abc. abc. abc.", n=2, stop=(". abc.",))
            params = replace(asked.params, logprobs=0, prompt_logprobs=0, include_stop=True)
            events = [e async for e in engine.submit(replace(asked, params=params))]
        for index in range(2):
            mine = [e for e in events if not isinstance(e, Failed) and e.index == index]
            scored, *rest = mine
            assert isinstance(scored, PromptScored)
            assert [p.token_id for p in scored.logprobs] == encode("bc. abc. abc.")
            deltas = [e for e in rest if isinstance(e, Delta | Finished)]
            assert "".join(e.text for e in deltas) == "abc. abc."
            assert [t for e in deltas for t in e.token_ids] == encode("abc. abc.")
            assert [p.token_id for e in deltas for p in e.logprobs] == encode("abc. abc.")
            end = deltas[-1]
            assert isinstance(end, Finished)
            assert (end.reason, end.stop) == (FinishReason.STOP, ". abc.")

    run(test)


def test_the_cached_part_of_a_prompt_is_told() -> None:
    async def test() -> None:
        async with running(ScriptedRunner()) as engine:
            for prompt, cached in (("hello world", 0), ("hello world", 10), ("hello moon", 6)):
                [end] = [e async for e in engine.submit(request(prompt)) if isinstance(e, Finished)]
                assert end.cached_tokens == cached

    run(test)


def test_an_answer_whose_grammar_fails_takes_no_other_with_it() -> None:
    class Broken:
        def allowed(self) -> memoryview:
            return memoryview(b"\xff" * 64)

        def advance(self, token_id: int) -> None:
            raise ValueError("secret")

    async def test() -> None:
        async with running(ScriptedRunner(before_step=lambda _: time.sleep(0.002))) as engine:
            good = engine.submit(request("a good answer"))
            for _ in range(MAX_FAILED_STEPS + 1):
                bad = engine.submit(replace(request("abc", n=2), new_constraint=Broken))
                last = [event async for event in bad][-1]
                assert isinstance(last, Failed)
                assert "secret" not in str(last.error)
            assert (await read(good))[0] == {0: "a good answer"}
            assert engine.failure is None
            assert engine.stats.blocks_used == 0

    run(test)


def test_every_choice_has_a_grammar_of_its_own() -> None:
    made = []

    class Anything:
        def __init__(self) -> None:
            made.append(self)
            self.taken: list[int] = []

        def allowed(self) -> memoryview:
            return memoryview(b"\xff" * 64)

        def advance(self, token_id: int) -> None:
            self.taken.append(token_id)

    async def test() -> None:
        async with running(ScriptedRunner()) as engine:
            await read(engine.submit(replace(request("abc", n=3), new_constraint=Anything)))
        assert [grammar.taken for grammar in made] == [encode("abc")] * 3

    run(test)


def test_work_between_steps_runs_in_the_engines_thread_while_answers_go_on() -> None:
    async def test() -> None:
        runner = ScriptedRunner(lambda _: "a" * 40)
        async with running(runner) as engine:
            generation = engine.submit(request("hello"))
            seen = []
            for _ in range(5):
                future = engine.between_steps(
                    lambda: (threading.current_thread().name, len(runner.batches))
                )
                seen.append(await asyncio.wrap_future(future))
            texts, _ = await read(generation)
            assert texts[0] == "a" * 40
            assert {name for name, _ in seen} == {"engine"}
            assert runner.threads == {"engine"}

    run(test)


def test_work_between_steps_that_fails_fails_alone() -> None:
    async def test() -> None:
        def fail() -> None:
            raise ValueError("broken")

        async with running(ScriptedRunner(lambda _: "fine")) as engine:
            generation = engine.submit(request("hello"))
            with pytest.raises(ValueError, match="broken"):
                await asyncio.wrap_future(engine.between_steps(fail))
            cancelled = engine.between_steps(lambda: 1)
            cancelled.cancel()
            texts, _ = await read(generation)
            assert texts[0] == "fine"
            assert engine.failure is None
            assert await asyncio.wrap_future(engine.between_steps(lambda: 2)) == 2

    run(test)


def test_nobody_waits_for_an_engine_that_has_ended() -> None:
    async def test() -> None:
        async with running(ScriptedRunner()) as engine:
            engine.stop()
            with pytest.raises(UnavailableError):
                engine.between_steps(lambda: 1).result(10)

        def fail(_: Batch) -> None:
            raise RuntimeError("no memory")

        async with running(ScriptedRunner(before_step=fail)) as engine:
            for _ in range(MAX_FAILED_STEPS):
                generation = engine.submit(request("hello"))
                with suppress(EngineError, EngineDeadError, AssertionError):
                    await read(generation)
            await until(lambda: engine.failure is not None)
            with pytest.raises(EngineDeadError):
                engine.between_steps(lambda: 1).result(10)

    run(test)


def test_work_that_waits_when_the_engine_stops_is_told() -> None:
    async def test() -> None:
        gate = threading.Event()
        entered = threading.Event()

        def wait(_: Batch) -> None:
            entered.set()
            gate.wait(10)

        async with running(ScriptedRunner(before_step=wait)) as engine:
            engine.submit(request("hello"))
            await asyncio.to_thread(entered.wait, 10)
            future = engine.between_steps(lambda: 1)
            stopping = asyncio.ensure_future(asyncio.to_thread(engine.stop))
            await asyncio.sleep(0.05)
            gate.set()
            await stopping
            with pytest.raises(UnavailableError):
                future.result(10)

    run(test)
