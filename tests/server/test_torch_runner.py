"""The torch path under the suite that every runner must pass."""

from __future__ import annotations

from server.model.torch_decoder import TorchDecoder
from server.model.torch_runner import TorchRunner
from server.step import Runner
from tests.server.conformance import Model, RunnerConformance
from tests.server.conformance.blocks import BlockConformance


def torch_runner(model: Model, kv_bytes: int, block_size: int = 32) -> Runner:
    decoder = TorchDecoder(model.config, model.checkpoint, model.cos, model.sin)
    return TorchRunner(decoder, kv_bytes, block_size)


class TestTorchRunner(RunnerConformance):
    def build(self, model: Model, kv_bytes: int) -> Runner:
        return torch_runner(model, kv_bytes)


class TestTorchRunnerWithSmallBlocks(BlockConformance):
    def build(self, model: Model, kv_bytes: int) -> Runner:
        return torch_runner(model, kv_bytes, block_size=8)
