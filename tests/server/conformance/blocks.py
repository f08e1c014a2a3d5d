"""Batches and blocks: nothing but a row's own tokens may change what it gets."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.step import Batch, BlockCopy
from tests.server.conformance.base import Conformance
from tests.server.conformance.models import build_adapter, build_model
from tests.server.conformance.text import Blocks, Text, distributions, everything, step, tokens

KINDS = (None, "all modules", "q and v only", "patterns")


class BlockConformance(Conformance):
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32))
    def test_rows_in_any_mix_and_any_pieces_get_what_they_get_alone(self, seed: int) -> None:
        chance = random.Random(seed)
        runner = self.runner(num_blocks=40)
        blocks = Blocks(runner, seed)
        texts = []
        for i in range(chance.randint(2, 6)):
            kind = chance.choice(KINDS)
            adapter = build_adapter(kind)[1] if kind else None
            prompt = tokens(chance.choice([1, 5, 31, 32, 33, 80]), seed=seed + i)
            texts.append(Text(blocks, prompt, adapter, everything(), seed=i))
        while running := [t for t in texts if len(t.output) < 3]:
            some = chance.sample(running, chance.randint(1, len(running)))
            step(runner, some, [t.row(chance.choice([1, 7, 32, 100])) for t in some])
        other = self.runner()
        for text in texts:
            # The answer's first tokens, too, computed one by one in company, at once alone.
            alone = self.distributions(
                other, [*text.prompt, *text.output[:-1]], adapter=text.adapter
            )
            self.assert_same(distributions(text), alone)

    def test_the_order_of_rows_is_the_order_of_results(self) -> None:
        """Rows of one adapter may be computed together; their results must not be mixed up."""
        runner = self.runner()
        prompts = [tokens(3 + i, seed=i) for i in range(6)]
        kinds = [None, "patterns", None, "all modules", "patterns", None]
        adapters = [build_adapter(kind)[1] if kind else None for kind in kinds]
        for turn in range(3):
            order = random.Random(turn).sample(range(6), 6)
            blocks = Blocks(runner, seed=turn)
            texts = [Text(blocks, prompts[i], adapters[i], everything()) for i in order]
            step(runner, texts, [text.row() for text in texts])
            for i, text in zip(order, texts, strict=True):
                alone = self.distributions(self.runner(), prompts[i], adapter=adapters[i])
                self.assert_same(distributions(text), alone)

    def test_a_prefix_written_once_serves_other_texts(self) -> None:
        runner = self.runner()
        size = runner.block_size
        prefix = tokens(2 * size, seed=1)
        blocks = Blocks(runner)
        first = Text(blocks, [*prefix, *tokens(9, seed=2)], params=everything())
        step(runner, [first], [first.row()])
        ends = [tokens(1, seed=3), tokens(size + 5, seed=4)]
        others = [
            Text(
                blocks,
                [*prefix, *end],
                params=everything(),
                block_ids=first.block_ids[:2],
                done=len(prefix),
            )
            for end in ends
        ]
        step(runner, [*others, first], [t.row() for t in (*others, first)])
        for text in (*others, first):
            known = [*text.prompt, *text.output[:-1]]
            expected = self.distributions(self.runner(), known)
            got = distributions(text)
            self.assert_same(got, expected[-len(got) :])

    def test_a_copied_block_continues_on_its_own(self) -> None:
        """n answers of one prompt: the last, half-full block is copied, and each writes to its own."""
        runner = self.runner()
        size = runner.block_size
        blocks = Blocks(runner)
        first = Text(blocks, tokens(size + 7, seed=5), params=everything())
        step(runner, [first], [first.row()])
        middle, own = blocks.take(2)
        twin = Text(
            blocks,
            first.prompt,
            params=everything(),
            block_ids=[first.block_ids[0], own],
            done=first.done,
            output=[17, 18, 19],
        )
        # By way of a block in between: copies run in order, and before anything else.
        copies = (BlockCopy(first.block_ids[1], middle), BlockCopy(middle, own))
        step(runner, [first, twin], [first.row(), twin.row()], copies=copies)
        step(runner, [first, twin], [first.row(), twin.row()])
        for text in (first, twin):
            known = [*text.prompt, *text.output[:-1]]
            expected = self.distributions(self.runner(), known)
            self.assert_same(distributions(text)[-1], expected[-1])

    def test_a_batch_of_copies_alone_is_done(self) -> None:
        runner = self.runner()
        blocks = Blocks(runner)
        text = Text(blocks, tokens(runner.block_size - 2, seed=6), params=everything())
        step(runner, [text], [text.row()])
        (other,) = blocks.take()
        assert runner.step(Batch((), (BlockCopy(text.block_ids[0], other),))) == []
        text.block_ids = [other]
        step(runner, [text], [text.row()])
        expected = self.distributions(self.runner(), [*text.prompt, text.output[0]])
        self.assert_same(distributions(text)[-1], expected[-1])

    def test_what_a_block_held_before_is_never_seen(self) -> None:
        runner = self.runner(num_blocks=3)
        assert runner.num_blocks >= 3
        self.whole(runner, tokens(runner.num_blocks * runner.block_size, seed=7))
        again = self.distributions(runner, tokens(40, seed=8))
        self.assert_same(again, self.distributions(self.runner(), tokens(40, seed=8)))

    def test_blocks_beyond_the_step_do_not_matter(self) -> None:
        """The engine may have given a sequence room for what comes later."""
        runner, prompt = self.runner(), tokens(20, seed=9)
        blocks = Blocks(runner)
        text = Text(blocks, prompt, params=everything(), block_ids=blocks.take(5))
        step(runner, [text], [text.row()])
        self.assert_same(distributions(text), self.distributions(self.runner(), prompt))

    def test_too_little_memory_for_one_block_is_refused(self) -> None:
        with pytest.raises(ValueError, match="bytes"):
            self.build(build_model(), 1)

    def test_the_budget_is_kept(self) -> None:
        model = build_model()
        for budget in (10**6, 10**7 + 1):
            runner = self.build(model, budget)
            each = runner.block_size * model.config.cache_bytes_per_token
            assert budget - each < runner.num_blocks * each <= budget

    def test_a_prompt_scored_in_pieces_is_scored_the_same(self) -> None:
        prompt = tokens(90, seed=10)
        runner = self.runner()
        text = Text(Blocks(runner), prompt, params=everything())
        for size in (1, 2, 40, 46, 1):
            step(runner, [text], [text.row(size)])
        assert len(text.scored) == len(prompt) - 1
        self.assert_same(distributions(text), self.distributions(self.runner(), prompt))
        assert np.isfinite(distributions(text)).all()
