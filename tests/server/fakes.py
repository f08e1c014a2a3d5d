"""Stand-ins for weights: a model that says what the test tells it to, and keeps the runner's promises checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.errors import ModelNotFoundError
from server.step import Batch, Row, Sampled
from server.types import Message, ModelInfo

END = 0


@dataclass
class Utf8Decoder:
    """Token id = byte + 1; 0 ends an answer. Holds incomplete characters."""

    pending: bytes = b""

    def push(self, token_id: int) -> str:
        self.pending += bytes([token_id - 1])
        try:
            text = self.pending.decode()
        except UnicodeDecodeError:
            return ""
        self.pending = b""
        return text

    def flush(self) -> str:
        return ""


def encode(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


@dataclass
class ScriptedRunner:
    """Every sequence says script(prompt) and then END. Fails a test that breaks the step protocol."""

    script: Callable[[str], str] = lambda prompt: prompt
    before_step: Callable[[Batch], None] = lambda _: None
    prompts: dict[int, list[int]] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def step(self, batch: Batch) -> list[Sampled | None]:
        self.batches.append(batch)
        self.threads.add(threading.current_thread().name)
        assert len({row.slot for row in batch.rows}) == len(batch.rows), "a slot twice in a batch"
        self.before_step(batch)
        return [self._row(row) for row in batch.rows]

    def _row(self, row: Row) -> Sampled | None:
        assert row.start + len(row.token_ids) <= row.capacity, "beyond the slot's capacity"
        computed = self.prompts.setdefault(row.slot, [])
        assert row.start == len(computed), "positions must be computed in order, each once"
        computed.extend(row.token_ids)
        if not row.samples:
            return None
        prompt = computed[: len(computed) - row.draw]
        answer = [*encode(self.script(bytes(t - 1 for t in prompt).decode())), END]
        return Sampled(answer[min(row.draw, len(answer) - 1)])

    def release(self, slot: int) -> None:
        self.prompts.pop(slot, None)


@dataclass
class FakeModel:
    """Fits ServedModel. The prompt is the last message's text."""

    id: str = "base"
    adapter: None = None
    stop_token_ids: frozenset[int] = frozenset({END})

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return encode(messages[-1].content)

    def text_decoder(self) -> Utf8Decoder:
        return Utf8Decoder()


@dataclass
class FakeCatalogue:
    """One model, `base`."""

    max_context: int = 256
    fingerprint: str = "fp_test"

    def find(self, name: str) -> FakeModel:
        if name != "base":
            raise ModelNotFoundError(name, ["base"])
        return FakeModel()

    def list(self) -> Sequence[ModelInfo]:
        return [ModelInfo("base", "fake", None, 1)]
