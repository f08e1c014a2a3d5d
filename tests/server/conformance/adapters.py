"""Adapters beside the base, each kind against PEFT's own unmerged model."""

from __future__ import annotations

import gc
import weakref

import pytest

from server.model.lora import AdapterWeights
from tests.server.conformance.base import Conformance
from tests.server.conformance.models import (
    ADAPTERS,
    build_adapter,
    build_model,
    log_softmax,
    oracle_logits,
)
from tests.server.conformance.text import Blocks, Text, distributions, everything, step, tokens


class AdapterConformance(Conformance):
    @pytest.mark.parametrize("kind", ADAPTERS)
    def test_an_adapter_equals_peft(self, kind: str) -> None:
        peft, weights = build_adapter(kind)
        prompt = tokens(60, seed=6)
        expected = log_softmax(oracle_logits(peft, prompt))
        base = log_softmax(oracle_logits(build_model().oracle, prompt))
        assert abs(expected - base).max() > 0.1, "an adapter that changes nothing shows nothing"
        self.assert_near(self.distributions(self.runner(), prompt, adapter=weights), expected)

    @pytest.mark.parametrize("spec", ["qwen2", "llama, biases", "llama in bfloat16"])
    def test_an_adapter_on_other_kinds_of_base_equals_peft(self, spec: str) -> None:
        peft, weights = build_adapter("all modules", spec)
        prompt = tokens(40, seed=7)
        got = self.distributions(self.runner(build_model(spec)), prompt, adapter=weights)
        self.assert_near(got, log_softmax(oracle_logits(peft, prompt)))

    def test_many_adapters_and_the_base_in_one_batch_equal_peft_each(self) -> None:
        """Different ranks and modules side by side; two rows of each, one long, one of a single token."""
        runner = self.runner()
        blocks = Blocks(runner, seed=1)
        kinds = [None, *ADAPTERS, None, *reversed(ADAPTERS)]
        texts = []
        for i, kind in enumerate(kinds):
            weights = build_adapter(kind)[1] if kind else None
            prompt = tokens(1 if i % 2 else 11 + i, seed=i)
            texts.append(Text(blocks, prompt, adapter=weights, params=everything()))
        step(runner, texts, [text.row() for text in texts])
        for kind, text in zip(kinds, texts, strict=True):
            oracle = build_adapter(kind)[0] if kind else build_model().oracle
            expected = log_softmax(oracle_logits(oracle, text.prompt))
            self.assert_near(distributions(text), expected)

    def test_versions_of_one_adapter_are_not_mixed_up(self) -> None:
        """A new version may come while the old one is still answering."""
        runner, prompt = self.runner(), tokens(20, seed=8)
        old, new = build_adapter("all modules")[1], build_adapter("rsLoRA")[1]
        versions = [
            AdapterWeights(f"tutor@{i}", w.digest, w.pairs) for i, w in enumerate((old, new))
        ]
        blocks = Blocks(runner)
        texts = [Text(blocks, prompt, adapter=v, params=everything()) for v in versions]
        step(runner, texts, [text.row() for text in texts])
        for kind, text in zip(("all modules", "rsLoRA"), texts, strict=True):
            expected = log_softmax(oracle_logits(build_adapter(kind)[0], prompt))
            self.assert_near(distributions(text), expected)

    def test_an_adapter_is_forgotten_when_nobody_has_it(self) -> None:
        """Versions come and go for months; the runner must not keep what it made of each."""
        runner, source = self.runner(), build_adapter("all modules")[1]
        weights = AdapterWeights("passing@1", "x", dict(source.pairs))
        self.distributions(runner, tokens(3), adapter=weights)
        alive = weakref.ref(weights)
        del weights
        gc.collect()
        assert alive() is None
