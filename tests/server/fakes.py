"""Stand-ins for weights: a model that says what the test tells it to, and keeps the runner's promises checked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.errors import ModelNotFoundError
from server.step import Batch, Row, RowResult, Sampled
from server.types import Message, ModelInfo, TokenLogprob

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
    """Every sequence says script(prompt) and then END; or, with `says`, any token of (row, text so far, draw number).

    Fails a test that breaks the step protocol. Its memory holds, for each position of each block, the number of the
    whole text up to there: just what keys and values depend on. So a wrong block table, a block given away while
    in use, or a prefix that was found though it is another's is seen at once, whatever is drawn.
    """

    script: Callable[[str], str] = lambda prompt: prompt
    before_step: Callable[[Batch], None] = lambda _: None
    says: Callable[[Row, list[int], int], int] | None = None
    block_size: int = 8
    num_blocks: int = 100
    batches: list[Batch] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    num_computed: int = 0  # positions, rejected drafts among them
    _memory: dict[int, list[int | None]] = field(default_factory=dict)
    _texts: dict[tuple[object, int], int] = field(default_factory=dict)

    def step(self, batch: Batch) -> list[RowResult]:
        self.batches.append(batch)
        self.threads.add(threading.current_thread().name)
        assert batch.rows, "an empty step"
        try:
            self.before_step(batch)
        except Exception:
            self._spoil(batch)
            raise
        self._check_sharing(batch)
        for copy in batch.copies:
            self._memory[copy.target] = list(self._block(copy.source))
        return [self._row(row) for row in batch.rows]

    def _block(self, block_id: int) -> list[int | None]:
        assert 0 <= block_id < self.num_blocks
        return self._memory.setdefault(block_id, [None] * self.block_size)

    def _spoil(self, batch: Batch) -> None:
        """A step that fails may leave anything where it would have written."""
        for copy in batch.copies:
            self._memory[copy.target] = [None] * self.block_size
        for row in batch.rows:
            for position in range(row.start, row.start + len(row.token_ids)):
                self._write(row, position, None)

    def _check_sharing(self, batch: Batch) -> None:
        users = Counter(block for row in batch.rows for block in row.block_ids)
        written = set()
        for row in batch.rows:
            assert len(set(row.block_ids)) == len(row.block_ids), "a block twice in a table"
            last = (row.start + len(row.token_ids) - 1) // self.block_size
            assert last < len(row.block_ids), "positions without a block"
            for block in row.block_ids[row.start // self.block_size : last + 1]:
                assert users[block] == 1, "a block is written that another row uses"
                written.add(block)
        for copy in batch.copies:
            assert copy.target in written, "a copy that belongs to no row"
        assert len({copy.target for copy in batch.copies}) == len(batch.copies)

    def _row(self, row: Row) -> RowResult:
        known = [*row.prompt_ids, *row.output_ids]
        piece = list(row.token_ids[: len(row.token_ids) - row.num_drafts])
        drafts = list(row.token_ids[len(piece) :])
        end = row.start + len(piece)
        assert piece, "a row without a token"
        assert piece == known[row.start : end], "not the tokens that come next"
        assert row.draw == len(row.output_ids), "a draw left out or made twice"
        assert row.num_draws == 0 or end == len(known), "a draw before the text was computed"
        assert not (drafts and row.constraint), "drafts under a grammar"
        text: int = self._number((row.adapter and row.adapter.digest), -1)
        for position, token in enumerate(known[: row.start]):
            text = self._number(text, token)
            block = self._block(row.block_ids[position // self.block_size])
            assert block[position % self.block_size] == text, "this was never computed here"
        for position, token in enumerate(row.token_ids, row.start):
            text = self._number(text, token)
            self._write(row, position, text)
        self.num_computed += len(row.token_ids)
        sampled = self._draw(row, known, drafts)
        for position in range(end + max(0, len(sampled) - 1), end + len(drafts)):
            self._write(row, position, None)  # of a draft that was wrong
        following = known[row.start + 1 : min(end + 1, len(row.prompt_ids))]
        assert list(row.scored_ids) in ([], following)
        scored = tuple(
            TokenLogprob(token, -float(position), 1)
            for position, token in enumerate(row.scored_ids, row.start + 1)
        )
        return RowResult(sampled, scored)

    def _draw(self, row: Row, known: list[int], drafts: list[int]) -> tuple[Sampled, ...]:
        sampled: list[Sampled] = []
        for k in range(row.num_draws):
            token = self._say(row, known + drafts[:k], row.draw + k)
            if k < row.num_banned_draws and token in row.banned_ids:
                token = encode("~")[0]
            if row.constraint is not None:
                words = row.constraint.allowed().cast("B").cast("I")
                allowed = [i for i in range(32 * len(words)) if words[i // 32] >> (i % 32) & 1]
                token = token if token in allowed else allowed[0]
            logprob = None
            if row.params.logprobs is not None:
                logprob = TokenLogprob(token, -float(row.draw + k), 1)
            sampled.append(Sampled(token, logprob))
            if k < len(drafts) and token != drafts[k]:
                break
        return tuple(sampled)

    def _say(self, row: Row, text: list[int], draw: int) -> int:
        if self.says is not None:
            return self.says(row, text, draw)
        prompt = bytes(t - 1 for t in row.prompt_ids).decode()
        answer = [*encode(self.script(prompt)), END]
        return answer[min(draw, len(answer) - 1)]

    def _write(self, row: Row, position: int, text: int | None) -> None:
        block = self._block(row.block_ids[position // self.block_size])
        block[position % self.block_size] = text

    def _number(self, before: object, token: int) -> int:
        return self._texts.setdefault((before, token), len(self._texts))


@dataclass(frozen=True)
class FakeAdapter:
    """Fits AdapterHandle."""

    key: str
    digest: str


@dataclass
class FakeModel:
    """Fits ServedModel. The prompt is the last message's text."""

    id: str = "base"
    adapter: FakeAdapter | None = None
    stop_token_ids: frozenset[int] = frozenset({END})

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return encode(messages[-1].content)

    def text_decoder(self) -> Utf8Decoder:
        return Utf8Decoder()


@dataclass
class FakeCatalogue:
    """One model, `base`."""

    max_context: int = 256
    vocab_size: int = 257
    fingerprint: str = "fp_test"

    def find(self, name: str) -> FakeModel:
        if name != "base":
            raise ModelNotFoundError(name, ["base"])
        return FakeModel()

    def list(self) -> Sequence[ModelInfo]:
        return [ModelInfo("base", "fake", None, 1)]
