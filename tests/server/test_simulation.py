"""Many requests through a small pool: every answer is the one the request gets alone, whatever happened around it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.step import Row
from server.types import Delta, Event, Finished, PromptScored
from tests.server.fakes import END, FakeAdapter, ScriptedRunner, encode
from tests.server.test_sequence import sequence

ADAPTERS = (None, FakeAdapter("one@1", "1"), FakeAdapter("two@1", "2"))


def says(row: Row, text: list[int], draw: int) -> int:
    """Any function of what a draw may depend on. Mostly predictable, so that some drafts are right and some wrong."""
    digest = "" if row.adapter is None else row.adapter.digest
    noise = zlib.crc32(f"{digest} {text} {row.seed} {draw}".encode())
    if noise % 29 == 0:
        return END
    source = noise if noise % 7 == 0 else sum(text[-2:])
    return encode("abcd")[source % 4]


def decodes(row: Row) -> bool:
    """Whether it computes its newest token, and drafts; also one that was sent back and has only that left."""
    return bool(row.output_ids) and len(row.token_ids) - row.num_drafts == 1


@dataclass(frozen=True)
class Ask:
    """One request of the simulation."""

    prompt: tuple[int, ...]
    n: int
    adapter: int
    scope: str
    tenant: str
    params: dict[str, Any]
    at_step: int
    cancel_after: int | None

    def sequences(self, name: str) -> list[Sequence]:
        choices: list[Sequence] = []
        for index in range(self.n):
            choices.append(
                sequence(
                    name,
                    self.prompt,
                    index=index,
                    leader=choices[0] if choices else None,
                    adapter=ADAPTERS[self.adapter],
                    cache_scope=self.scope,
                    tenant=self.tenant,
                    **self.params,
                )
            )
        return choices


params = st.fixed_dictionaries(
    {
        "max_tokens": st.sampled_from([1, 2, 9, 17, 23, 24]),
        "seed": st.integers(0, 2),
        "min_tokens": st.sampled_from([0, 0, 5]),
        "stop": st.sampled_from([(), (), ("dad",), ("abca", "cc")]),
        "logprobs": st.sampled_from([None, 0]),
        "prompt_logprobs": st.sampled_from([None, None, 0]),
    }
)
# Prompts begin alike, so that they share blocks, whole and in part.
prompts = st.builds(
    lambda shared, own: tuple(encode("abcdabcdacacbdbdabcdaabb"[:shared] + own)),
    st.integers(1, 24),
    st.text("abcd", max_size=8),
)
asks = st.builds(
    Ask,
    prompt=prompts,
    n=st.sampled_from([1, 1, 1, 2, 3]),
    adapter=st.integers(0, 2),
    scope=st.sampled_from(["", "", "key"]),
    tenant=st.sampled_from(["", "", "one", "two"]),
    params=params,
    at_step=st.sampled_from([0, 0, 0, 1, 7, 20]),
    cancel_after=st.sampled_from([None, None, None, 0, 3, 11]),
)


Said = tuple[str, tuple[int, ...], tuple[Any, ...], Any]  # text, tokens, logprobs, how it ended


def join(events: list[Event]) -> Said:
    text, tokens, logprobs, end = "", (), (), None  # type: Any
    for position, said in enumerate(events):
        if isinstance(said, PromptScored):
            assert position == 0
            logprobs += said.logprobs
            continue
        assert isinstance(said, Delta | Finished)
        assert end is None, "nothing comes after the end"
        text, tokens, logprobs = text + said.text, tokens + said.token_ids, logprobs + said.logprobs
        if isinstance(said, Finished):
            end = said.reason, said.completion_tokens, said.stop
            assert said.completion_tokens == len(tokens)
    return text, tokens, logprobs, end


def simulate(
    all_asks: list[Ask], limits: Limits, num_blocks: int
) -> tuple[dict[Any, Said], Scheduler]:
    runner = ScriptedRunner(says=says, block_size=4, num_blocks=num_blocks)
    scheduler = Scheduler(limits, num_blocks=num_blocks, block_size=4)
    events: dict[tuple[str, int], list[Event]] = {}
    cancelled = set()
    drew_before: set[int] = set()
    steps = 0
    while scheduler.has_work or any(ask.at_step >= steps for ask in all_asks):
        for i, ask in enumerate(all_asks):
            if ask.at_step == steps:
                for s in ask.sequences(str(i)):
                    events[str(i), s.index] = []
                    scheduler.add(s)
            if ask.cancel_after is not None and ask.at_step + ask.cancel_after == steps:
                cancelled.add(str(i))
                scheduler.remove(str(i))
        steps += 1
        batch = scheduler.next_batch()
        if batch is None:
            continue
        assert steps < 3000, "no progress"
        assert len(batch.rows) <= limits.max_running
        assert batch.num_tokens <= max(limits.max_step_tokens, limits.max_running)
        # Those that drew in the last step keep their pace, whatever prompts come beside them.
        if any(id(row.output_ids) in drew_before for row in batch.rows):
            prompts = sum(
                len(row.token_ids)
                for row in batch.rows
                if id(row.output_ids) not in drew_before and not decodes(row)
            )
            assert prompts <= limits.prefill_tokens_beside_decoding
        drew_before = {id(row.output_ids) for row in batch.rows if row.num_draws}
        for s, said in scheduler.commit(batch, runner.step(batch)):
            events[s.request_id, s.index].append(said)
        stats = scheduler.stats
        assert stats.blocks_used + stats.blocks_cached <= stats.blocks_total
    assert scheduler.pool.num_used == 0, "a leak"
    for node in scheduler.pool.cache.nodes():
        assert node.parent is not None
        is_full = node.token_ids in node.parent.children
        assert len(node.token_ids) == 4 if is_full else 0 < len(node.token_ids) < 4
    return {key: join(said) for key, said in events.items() if key[0] not in cancelled}, scheduler


@settings(max_examples=120, deadline=None)
@given(
    st.lists(asks, min_size=1, max_size=8),
    st.sampled_from([1, 2, 3, 5, 8]),
    st.sampled_from([0, 5, 30]),
    st.sampled_from([1, 3, 64]),
    st.sampled_from([0, 4, 8]),
    st.integers(14, 20),
)
def test_every_answer_is_the_one_the_request_gets_alone(
    all_asks: list[Ask],
    max_running: int,
    more_step_tokens: int,
    beside: int,
    drafts: int,
    num_blocks: int,
) -> None:
    limits = Limits(max_running, max_running + more_step_tokens, beside, drafts)
    together, scheduler = simulate(all_asks, limits, num_blocks)
    if len({ask.tenant for ask in all_asks}) > 1:
        event("several tenants")
    if scheduler.stats.preemptions:
        event("somebody was sent back")
    if scheduler.stats.prefix_hits:
        event("a prefix was found")
    if scheduler.stats.drafts_accepted:
        event("a draft was right")
    alone_limits = Limits(1, 64, 64, 0)
    for (name, index), said in together.items():
        ask = all_asks[int(name)]
        [alone] = [s for s in ask.sequences(name) if s.index == index]
        alone.leader = None
        runner = ScriptedRunner(says=says, block_size=4, num_blocks=24)
        own = Scheduler(alone_limits, num_blocks=24, block_size=4)
        own.add(alone)
        events: list[Event] = []
        while (batch := own.next_batch()) is not None:
            events += [e for _, e in own.commit(batch, runner.step(batch))]
        assert said == join(events)
        assert said[3] is not None, "every answer ends"
