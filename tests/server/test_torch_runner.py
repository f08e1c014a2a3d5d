"""The torch path under the suite that every runner must pass."""

from __future__ import annotations

from server.model.torch_decoder import TorchDecoder
from server.model.torch_runner import TorchRunner
from server.step import Runner
from tests.server.conformance import Model, RunnerConformance


class TestTorchRunner(RunnerConformance):
    def build(self, model: Model, kv_bytes: int) -> Runner:
        decoder = TorchDecoder(model.config, model.checkpoint, model.cos, model.sin)
        return TorchRunner(decoder, kv_bytes)
