"""The promise of the README: an answer is the same bits alone and in a full batch, with and without cached prefixes,
with and without drafts, after having lost its place, in any cutting of prompts, whoever leaves beside it.

The real scheduler on the real native decoder.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from hypothesis import event, given, settings
from hypothesis import strategies as st

from server.engine.scheduler import Limits, Scheduler
from server.engine.sequence import Sequence
from server.engine.text import TextStream
from server.model.lora import AdapterWeights
from server.model.native_runner import NativeRunner
from server.step import Runner
from server.types import Delta, Failed, Finished, PromptScored, SamplingParams, TokenLogprob
from tests.server.conformance.models import build_adapter, build_model
from tests.server.test_native_runner import native_runner

BLOCK = 32


class NoText:
    """Text is not what is compared here."""

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def adapters() -> tuple[AdapterWeights | None, ...]:
    return None, build_adapter("all modules")[1], build_adapter("rsLoRA")[1]


def runner_with(num_blocks: int) -> NativeRunner:
    model = build_model("llama in bfloat16")
    return native_runner(model, num_blocks * BLOCK * model.config.cache_bytes_per_token)


def make(number: int, chance: random.Random, opening: list[int]) -> list[Sequence]:
    """The choices of a request; those with one opening begin alike, so that they can share what is computed."""
    shared = opening[: chance.choice([0, 0, 20, 40, 75, 96])]
    own = [chance.randint(3, 250) for _ in range(chance.randint(1, 30))]
    params = SamplingParams(
        temperature=chance.choice([0, 0, 0.7, 1.2]),
        top_p=chance.choice([1.0, 0.9]),
        top_k=chance.choice([0, 20]),
        min_p=chance.choice([0.0, 0.05]),
        frequency_penalty=chance.choice([0.0, 0.4]),
        repetition_penalty=chance.choice([1.0, 1.1]),
        seed=number,
        # Few words make an answer that repeats itself, so that drafts are made and some are right.
        logit_bias=chance.choice([(), tuple((token, 12.0) for token in (60, 61, 62, 63))]),
        max_tokens=chance.randint(1, 90),
        logprobs=chance.choice([0, 3]),
        prompt_logprobs=chance.choice([None, None, 1]),
    )
    adapter = chance.choice(adapters())
    choices: list[Sequence] = []
    for index in range(chance.choice([1, 1, 2, 3])):
        choices.append(
            Sequence(
                request_id=str(number),
                index=index,
                prompt_ids=tuple(shared + own),
                params=params,
                stop_token_ids=(2,),
                adapter=adapter,
                text=TextStream(NoText()),
                leader=choices[0] if choices else None,
            )
        )
    return choices


# By request and choice.
Said = dict[tuple[str, int], tuple[list[int], list[TokenLogprob]]]


def answers(
    runner: Runner,
    requests: Iterable[tuple[int, list[Sequence]]],
    limits: Limits,
    leaving: Mapping[str, int] | None = None,
) -> tuple[Said, Scheduler]:
    """Every request comes at its step, and some leave at theirs; what was said of each choice, in order."""
    scheduler = Scheduler(limits, num_blocks=runner.num_blocks, block_size=runner.block_size)
    waiting = sorted(requests, key=lambda pair: pair[0])
    said: Said = {(s.request_id, s.index): ([], []) for _, choices in waiting for s in choices}
    step = 0
    while waiting or scheduler.has_work:
        while waiting and waiting[0][0] <= step:
            for sequence in waiting.pop(0)[1]:
                scheduler.add(sequence)
        step += 1
        for request_id, last in (leaving or {}).items():
            if last == step:
                scheduler.remove(request_id)
        batch = scheduler.next_batch()
        if batch is None:
            continue
        for sequence, told in scheduler.commit(batch, runner.step(batch)):
            assert not isinstance(told, Failed)
            tokens, logprobs = said[sequence.request_id, sequence.index]
            logprobs += told.logprobs
            if isinstance(told, Delta | Finished):
                tokens += told.token_ids
            else:
                assert isinstance(told, PromptScored)
    return said, scheduler


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([7, 9, 60]))
def test_an_answer_is_the_same_bits_in_any_company(seed: int, num_blocks: int) -> None:
    chance = random.Random(seed)
    opening = [chance.randint(3, 250) for _ in range(96)]
    count = chance.randint(2, 9)

    def requests() -> list[list[Sequence]]:
        again = random.Random(seed + 1)
        return [make(number, again, opening) for number in range(count)]

    runner = runner_with(num_blocks)
    limits = Limits(
        max_running=chance.choice([3, 9]),
        max_step_tokens=chance.choice([9, 50, 300]),
        prefill_tokens_beside_decoding=chance.choice([1, 17, 64]),
        draft_tokens_per_step=chance.choice([0, 8]),
    )
    leaving = {str(n): chance.randint(1, 80) for n in range(count) if chance.random() < 0.3}
    together, scheduler = answers(
        runner, [(chance.choice([0, 0, 5, 30]), choices) for choices in requests()], limits, leaving
    )
    alone: Said = {}
    for choices in requests():
        alone |= answers(runner_with(8), [(0, choices)], Limits(1, 512, 512, 0))[0]
    for choice, said in together.items():
        if choice[0] not in leaving:
            assert said == alone[choice]
        else:  # up to where it left
            for told, all_of_it in zip(said, alone[choice], strict=True):
                assert told == all_of_it[: len(told)]
    stats = scheduler.stats
    event(f"left: {bool(leaving)}")
    event(f"preempted: {stats.preemptions > 0}")
    event(f"prefix found: {stats.prefix_hits > 0}")
    event(f"draft right: {stats.drafts_accepted > 0}")
