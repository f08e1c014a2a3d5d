"""What every Runner must do, whatever it is written in.

A test module makes a class of RunnerConformance, whose `build` makes the runner under test:

    class TestTorchRunner(RunnerConformance):
        def build(self, model, kv_bytes):
            return TorchRunner(...)
"""

from tests.server.conformance.adapters import AdapterConformance
from tests.server.conformance.blocks import BlockConformance
from tests.server.conformance.drawing import DrawingConformance
from tests.server.conformance.logits import LogitConformance
from tests.server.conformance.models import Model


class RunnerConformance(LogitConformance, AdapterConformance, BlockConformance, DrawingConformance):
    """All of it."""


__all__ = ["Model", "RunnerConformance"]
