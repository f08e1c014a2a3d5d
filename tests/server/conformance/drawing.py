"""Draws: seeds, drafts, and every sampling parameter, through the runner."""

from __future__ import annotations

import random
from typing import Any

import pytest

from server.types import SamplingParams
from tests.server.conformance.base import Conformance
from tests.server.conformance.models import VOCAB, build_adapter, build_model, oracle_logits
from tests.server.conformance.text import Blocks, Text, generate, step, tokens
from tests.server.sampler_reference import Allow, draw_slowly, random_settings

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8},
    "top_p": {"temperature": 1.2, "top_p": 0.7},
    "top_k and min_p": {"temperature": 1.5, "top_k": 9, "min_p": 0.05},
    "penalties": {
        "temperature": 1.0,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.8,
        "repetition_penalty": 1.3,
    },
    "greedy with penalties": {
        "temperature": 0,
        "presence_penalty": 1.0,
        "frequency_penalty": 1.0,
        "repetition_penalty": 1.5,
    },
    "logit_bias": {"temperature": 0.7, "logit_bias": ((5, 8.0), (9, 8.0), (20, -100.0))},
}


class DrawingConformance(Conformance):
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_each_parameter_does_what_its_definition_says(self, setting: str) -> None:
        """Transformers' logits, drawn from by a slow and independent sampler."""
        model, runner = build_model(), self.runner()
        params = SamplingParams(**SETTINGS[setting])
        text = Text(Blocks(runner), tokens(12, seed=1), params=params, seed=2**63 + 5)
        for _ in range(15):
            row = text.row()
            known = [*text.prompt, *text.output]
            (expected,) = draw_slowly(oracle_logits(model.oracle, known)[-1:], row)
            step(runner, [text], [row])
            assert text.output[-1] == expected

    def test_any_settings_side_by_side_are_drawn_by_the_definitions(self) -> None:
        """Many rows, each with its own parameters, over a vocabulary that is no multiple of anything."""
        model = build_model("llama, 3001 tokens")
        runner, vocab, chance = self.runner(model), model.config.vocab_size, random.Random(11)
        drawn = wrong = 0
        for turn in range(10):
            blocks = Blocks(runner, seed=turn)
            texts = []
            for i in range(8):
                allowed = {chance.randrange(vocab) for _ in range(50)}
                extra = {
                    "banned_ids": tuple(chance.randrange(vocab) for _ in range(5)),
                    "num_banned_draws": chance.randint(0, 1),
                    "constraint": Allow(allowed, vocab) if chance.random() < 0.2 else None,
                }
                params = SamplingParams(**random_settings(chance, vocab))
                prompt = tokens(chance.randint(1, 40), seed=8 * turn + i)
                seed = chance.getrandbits(64)
                texts.append(Text(blocks, prompt, params=params, seed=seed, extra=extra))
            for _ in range(4):
                rows = [text.row() for text in texts]
                step(runner, texts, rows)
                for text, row in zip(texts, rows, strict=True):
                    logits = oracle_logits(model.oracle, [*text.prompt, *text.output[:-1]])
                    drawn += 1
                    wrong += draw_slowly(logits[-1:], row) != text.output[-1:]
        # Logits differ by 1e-5 from the oracle's, so a random number may lie between two tokens' shares.
        assert drawn == 320
        assert wrong <= 3

    def test_a_finished_grammar_may_end_before_min_tokens(self) -> None:
        """It allows the end token only; banning that too would leave nothing to draw."""
        runner = self.runner()
        extra = {"constraint": Allow([2], VOCAB), "banned_ids": (2, 7), "num_banned_draws": 1}
        for params in (SamplingParams(temperature=0), SamplingParams(temperature=1, top_k=5)):
            text = Text(Blocks(runner), tokens(5), params=params, extra=extra)
            step(runner, [text], [text.row()])
            assert text.output == [2]

    def test_banned_tokens_and_grammars_are_obeyed(self) -> None:
        model, runner = build_model(), self.runner()
        prompt = tokens(8, seed=2)
        best = int(oracle_logits(model.oracle, prompt)[-1].argmax())
        blocks = Blocks(runner)
        free = Text(blocks, prompt)
        banned = Text(blocks, prompt, extra={"banned_ids": (best,), "num_banned_draws": 1})
        few = Text(blocks, prompt, extra={"constraint": Allow([40, 41, VOCAB - 1], VOCAB)})
        texts = [free, banned, few]
        for _ in range(3):
            step(runner, texts, [text.row() for text in texts])
        assert free.output[0] == best
        assert best not in banned.output
        assert set(few.output) <= {40, 41, VOCAB - 1}

    def test_the_same_seed_gives_the_same_answer_whatever_the_neighbours(self) -> None:
        def answer(neighbours: int) -> list[int]:
            runner = self.runner()
            blocks = Blocks(runner, seed=neighbours)
            params = SamplingParams(temperature=1.0, top_p=0.9)
            mine = Text(blocks, tokens(5, seed=3), params=params, seed=42)
            others = [
                Text(blocks, tokens(3 + i, seed=i), params=SamplingParams(), seed=i)
                for i in range(neighbours)
            ]
            generate(runner, [*others[:2], mine, *others[2:]], 12)
            return mine.output

        assert answer(0) == answer(1) == answer(5)

    def test_seeds_differ(self) -> None:
        runner = self.runner()
        blocks = Blocks(runner)
        texts = [Text(blocks, tokens(5), params=SamplingParams(), seed=i) for i in range(6)]
        generate(runner, texts, 8)
        assert len({tuple(text.output) for text in texts}) == 6

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_drafts_change_the_pace_and_nothing_else(self, setting: str) -> None:
        """Right, half right and wrong drafts, with and without an adapter, beside rows without drafts."""
        params = SamplingParams(**SETTINGS[setting], logprobs=2)
        chance = random.Random(setting)
        kinds = [None, "all modules", "patterns"]
        adapters = [build_adapter(kind)[1] if kind else None for kind in kinds]
        count = 20
        plain_runner = self.runner()
        blocks = Blocks(plain_runner)
        plain = [Text(blocks, tokens(6, seed=i), a, params, seed=i) for i, a in enumerate(adapters)]
        generate(plain_runner, plain, count)

        runner = self.runner()
        blocks = Blocks(runner, seed=1)
        ahead = [Text(blocks, t.prompt, t.adapter, params, seed=t.seed) for t in plain]
        steps = 0
        while running := [t for t in ahead if len(t.output) < count]:
            rows = []
            for text in running:
                true = plain[ahead.index(text)].output[len(text.output) :]
                drafts = [
                    t if chance.random() < 0.8 else (t + 1) % VOCAB
                    for t in true[: chance.randint(0, 4)]
                ]
                rows.append(text.row(drafts=drafts))
            step(runner, running, rows)
            steps += 1
        assert steps < count, "no draft was ever right"
        for slow, fast in zip(plain, ahead, strict=True):
            assert fast.output[:count] == slow.output
            for a, b in zip(fast.logprobs[:count], slow.logprobs, strict=True):
                assert (a.token_id, a.rank) == (b.token_id, b.rank)
                assert [token for token, _ in a.top] == [token for token, _ in b.top]
                self.assert_same(
                    [a.logprob, *(v for _, v in a.top)], [b.logprob, *(v for _, v in b.top)]
                )

    def test_drafts_with_bans_end_where_the_ban_ends(self) -> None:
        runner = self.runner()
        blocks = Blocks(runner)
        texts = [Text(blocks, tokens(6, seed=i)) for i in range(9)]
        generate(runner, texts, 4)
        plain = next(t for t in texts if t.output[2] not in t.output[:2])
        third = plain.output[2]
        for num_banned in (2, 3):
            extra = {"banned_ids": (third,), "num_banned_draws": num_banned}
            text = Text(blocks, plain.prompt, extra=extra)
            step(runner, [text], [text.row(drafts=plain.output[:3])])
            if num_banned == 2:
                assert text.output == plain.output
            else:
                assert text.output[:2] == plain.output[:2]
                assert len(text.output) == 3
                assert text.output[2] != third
