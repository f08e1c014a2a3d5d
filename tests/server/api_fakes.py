"""An engine that says what the test tells it to, event by event, behind the real HTTP surface.

Tokens, templates and grammars are real (a byte tokenizer: one token per byte); only weights and steps are not.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from server.errors import (
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
)
from server.model.tokenizer import ChatTokenizer
from server.types import (
    AdapterHandle,
    Delta,
    EngineStats,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    PromptScored,
    TokenLogprob,
)
from tests.models import byte_tokenizer

END = 2  # <|im_end|>
VOCAB_SIZE = 272
LAST = "{{ messages[-1]['content'] }}"  # the prompt is the last message's text


@dataclass
class FakeModel:
    """Fits ServedModel."""

    id: str = "base"
    template: str = LAST
    adapter: None = None
    stop_token_ids: frozenset[int] = frozenset({END})

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(byte_tokenizer(), self.template)

    def text_decoder(self) -> object:
        return self.tokenizer.text_decoder()


@dataclass
class FakeCatalogue:
    """`base`, and `tools`, whose template is a parameter."""

    template: str = LAST
    max_context: int = 256
    vocab_size: int = VOCAB_SIZE
    fingerprint: str = "fp_test"

    @cached_property
    def models(self) -> dict[str, FakeModel]:
        return {"base": FakeModel(template=self.template)}

    def find(self, name: str) -> FakeModel:
        if name not in self.models:
            raise ModelNotFoundError(name, ["base"])
        return self.models[name]

    def list(self) -> Sequence[ModelInfo]:
        return [ModelInfo("base", "fake", None, 1, "sha256:0")]


def logprob(token_id: int, num_top: int) -> TokenLogprob:
    """Told of every token: probability one half, and its neighbours as the next likely."""
    top = [(token_id, -0.5), *((token_id + 1 + n, -2.0 - n) for n in range(num_top))]
    return TokenLogprob(token_id, -0.5, 1, tuple(top[:num_top]))


Script = Callable[[str, GenerationRequest, int], str]


@dataclass
class FakeEngine:
    """Every choice says script(prompt, request, index) and then the end token; a constraint overrules the script.

    step_seconds: pause before each token. tokens_per_event: as after speculation. fail_after: a failure after so many
    tokens. gate: while it is cleared nothing is computed.
    """

    script: Script = lambda prompt, request, index: prompt
    step_seconds: float = 0.0
    tokens_per_event: int = 1
    fail_after: int | None = None
    max_running: int = 8
    failure: Exception | None = None
    cached_tokens: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    requests: list[GenerationRequest] = field(default_factory=list)
    running: int = 0
    tokens_drawn: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.running, generation_tokens=self.tokens_drawn, blocks_total=8
        )

    def submit(
        self, request: GenerationRequest, adapter: AdapterHandle | None = None
    ) -> FakeGeneration:
        assert adapter is None, "no adapter is leased here"
        if not request.prompt_ids:
            raise InvalidRequestError("The messages come to an empty prompt.", param="messages")
        if len(request.prompt_ids) + request.params.max_tokens > 256:
            raise ContextLengthError(256, len(request.prompt_ids), request.params.max_tokens)
        if self.running + request.n > self.max_running:
            raise OverloadedError("The server is busy. Try again later.", retry_after=5)
        self.requests.append(request)
        self.running += request.n
        return FakeGeneration(self, request)


class FakeGeneration:
    """Fits what the API uses of the engine's Generation."""

    def __init__(self, engine: FakeEngine, request: GenerationRequest) -> None:
        self.request = request
        self._engine = engine
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._open = request.n
        self._unfinished = request.n
        self.begun: float | None = None
        self._tasks = [asyncio.ensure_future(self._say(index)) for index in range(request.n)]

    @property
    def is_finished(self) -> bool:
        return self._open == 0

    async def next_event(self) -> Event:
        event = await self._queue.get()
        if isinstance(event, Finished):
            self._open -= 1
        elif isinstance(event, Failed):
            self._open = 0
        return event

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._end(self._unfinished)

    def _end(self, count: int) -> None:
        self._unfinished -= count
        self._engine.running -= count

    async def _say(self, index: int) -> None:
        engine, request, params = self._engine, self.request, self.request.params
        model = request.model
        if params.prompt_logprobs is not None:
            scored = tuple(logprob(i, params.prompt_logprobs) for i in request.prompt_ids[1:])
            self._queue.put_nowait(PromptScored(index, scored))
        prompt = model.tokenizer.decode(request.prompt_ids)
        ids = model.tokenizer.encode(
            engine.script(prompt, request, index), add_special_tokens=False
        )
        constraint = request.new_constraint() if request.new_constraint else None
        rng = random.Random(params.seed + index)
        decoder, drawn, text = model.text_decoder(), 0, ""
        batch: list[int] = []
        reason: FinishReason | None = None
        while reason is None and params.max_tokens:
            await asyncio.sleep(engine.step_seconds)
            while not engine.gate.is_set():
                await asyncio.sleep(0.005)
            self.begun = self.begun or time.perf_counter()
            if engine.fail_after is not None and drawn >= engine.fail_after:
                self._end(self._unfinished)
                self._queue.put_nowait(Failed(EngineError("The model failed on this request.")))
                return
            token = ids[drawn] if drawn < len(ids) else END
            if constraint is not None:
                allowed = [
                    i for i in range(VOCAB_SIZE) if constraint.allowed()[i >> 3] >> (i & 7) & 1
                ]
                token = token if token in allowed else rng.choice(allowed)
                constraint.advance(token)
            drawn += 1
            engine.tokens_drawn += 1
            batch.append(token)
            if token == END and not params.ignore_eos:
                reason = FinishReason.STOP
                text += decoder.flush()
            else:
                text += decoder.push(token)
                if drawn == params.max_tokens:
                    reason = FinishReason.LENGTH
                    text += decoder.flush()
            if reason is None and len(batch) < engine.tokens_per_event:
                continue
            logprobs = (
                () if params.logprobs is None else tuple(logprob(i, params.logprobs) for i in batch)
            )
            if reason is None:
                self._queue.put_nowait(Delta(index, text, tuple(batch), logprobs))
                batch, text = [], ""
        self._end(1)
        logprobs = (
            () if params.logprobs is None else tuple(logprob(i, params.logprobs) for i in batch)
        )
        self._queue.put_nowait(
            Finished(
                index,
                text,
                reason or FinishReason.LENGTH,
                drawn,
                tuple(batch),
                logprobs,
                engine.cached_tokens,
            )
        )
