"""What the parts of the conformance suite share: how the runner under test is made, and what equal means for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from server.step import Runner
from tests.server.conformance.models import Model, build_model
from tests.server.conformance.text import Blocks, Text, distributions, everything, step


class Conformance:
    # Whether a row's bits do not depend on its neighbours, its pieces and its blocks.
    bit_exact = False

    def build(self, model: Model, kv_bytes: int) -> Runner:
        raise NotImplementedError

    def runner(self, model: Model | None = None, num_blocks: int = 64) -> Runner:
        model = model or build_model()
        # Every runner chooses its own block size; 32 positions is the largest in use.
        return self.build(model, num_blocks * 32 * model.config.cache_bytes_per_token)

    def assert_same(self, got: ArrayLike, expected: ArrayLike) -> None:
        """Two ways to compute the same thing, by the same runner."""
        if self.bit_exact:
            np.testing.assert_array_equal(got, expected)
        else:
            np.testing.assert_allclose(got, expected, atol=2e-4, rtol=1e-4)

    @staticmethod
    def assert_near(got: ArrayLike, oracle: ArrayLike) -> None:
        """Float32 sums in different orders. Of distributions: natural logs, so 2e-4 is 0.02 % of a probability."""
        np.testing.assert_allclose(got, oracle, atol=2e-4, rtol=1e-4)

    @staticmethod
    def whole(runner: Runner, prompt: Sequence[int], **text: object) -> Text:
        """A text whose prompt was computed at once, alone, with the distribution at every position."""
        whole = Text(Blocks(runner), list(prompt), params=everything(), **text)  # type: ignore[arg-type]
        step(runner, [whole], [whole.row()])
        return whole

    @classmethod
    def distributions(cls, runner: Runner, prompt: Sequence[int], **text: object) -> np.ndarray:
        return distributions(cls.whole(runner, prompt, **text))
