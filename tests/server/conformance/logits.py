"""The numbers: every family and size against transformers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from server.types import SamplingParams
from tests.server.conformance.base import Conformance
from tests.server.conformance.models import (
    SPECS,
    build_model,
    load_model,
    log_softmax,
    oracle_logits,
)
from tests.server.conformance.text import (
    Blocks,
    Text,
    distributions,
    everything,
    generate,
    step,
    tokens,
)


class LogitConformance(Conformance):
    @pytest.mark.parametrize("spec", SPECS)
    def test_the_distribution_at_every_position_equals_transformers(self, spec: str) -> None:
        model, prompt = build_model(spec), tokens(150)
        expected = log_softmax(oracle_logits(model.oracle, prompt))
        assert expected.std() > 1, "a model that says nothing would hide mistakes"
        self.assert_near(self.distributions(self.runner(model), prompt), expected)

    @pytest.mark.parametrize("spec", ["llama", "mistral", "qwen2", "qwen3"])
    @pytest.mark.parametrize("layers", [1, 2, 3, 4])
    def test_layer_by_layer_equals_transformers(self, spec: str, layers: int) -> None:
        """What leaves the first layers, seen through the output matrix: an injection, as vocab > hidden."""
        model, prompt = build_model(spec, layers=4).first_layers(layers), tokens(40, seed=1)
        expected = log_softmax(oracle_logits(model.oracle, prompt))
        self.assert_near(self.distributions(self.runner(model), prompt), expected)

    @pytest.mark.parametrize("spec", SPECS)
    def test_greedy_answers_equal_transformers(self, spec: str) -> None:
        model, prompt, count = build_model(spec), tokens(20, seed=2), 24
        with torch.inference_mode():
            answer = model.oracle.generate(
                torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0
            )[0, len(prompt) :]
        runner = self.runner(model)
        text = Text(Blocks(runner), prompt)
        generate(runner, [text], count)
        assert text.output == answer.tolist()

    @pytest.mark.model
    def test_the_embedded_model_equals_transformers(self, embedded_model: Path) -> None:
        """A prompt's whole distribution, and a greedy answer in two pieces and one by one."""
        model = load_model(embedded_model)
        chance = random.Random(12)
        prompt = [chance.randrange(model.config.vocab_size) for _ in range(40)]
        with torch.inference_mode():
            answer = model.oracle.generate(
                torch.tensor([prompt]), max_new_tokens=10, do_sample=False, pad_token_id=0
            )[0, len(prompt) :].tolist()
        expected = log_softmax(oracle_logits(model.oracle, [*prompt, *answer[:-1]]))
        runner = self.runner(model, num_blocks=8)
        text = Text(Blocks(runner), prompt)
        step(runner, [text], [text.row(17)])
        generate(runner, [text], len(answer))
        assert text.output == answer
        whole = Text(Blocks(runner), [*prompt, *answer[:-1]], params=everything())
        step(runner, [whole], [whole.row()])
        np.testing.assert_allclose(distributions(whole), expected, atol=1e-3)

    def test_the_last_position_of_the_context_is_right(self) -> None:
        model, prompt = build_model("llama, yarn rope, not tied"), tokens(512, seed=3)
        expected = log_softmax(oracle_logits(model.oracle, prompt))[-1]
        self.assert_near(self.distributions(self.runner(model), prompt)[-1], expected)

    def test_scores_and_logprobs_are_told_as_asked(self) -> None:
        """top, rank and logprob of prompt and answer, against transformers' log-softmax."""
        model, prompt = build_model(), tokens(30, seed=4)
        runner = self.runner(model)
        params = SamplingParams(temperature=0.9, logprobs=3, prompt_logprobs=2)
        text = Text(Blocks(runner), prompt, params=params, seed=5)
        generate(runner, [text], 12)
        expected = log_softmax(oracle_logits(model.oracle, [*prompt, *text.output]))
        assert [s.token_id for s in text.scored] == prompt[1:]
        assert [s.token_id for s in text.logprobs] == text.output
        for i, said in enumerate([*text.scored, *text.logprobs]):
            count = 2 if i < len(prompt) - 1 else 3
            best = np.argsort(-expected[i])[:count]
            assert [token for token, _ in said.top] == best.tolist()
            self.assert_near([value for _, value in said.top], expected[i][best])
            self.assert_near(said.logprob, expected[i][said.token_id])
            assert said.rank == 1 + np.count_nonzero(expected[i] > expected[i][said.token_id])

    def test_nothing_is_told_that_was_not_asked_for(self) -> None:
        runner = self.runner()
        text = Text(Blocks(runner), tokens(5))
        generate(runner, [text], 2)
        assert not text.logprobs
        assert not text.scored
