"""`python -m server bench`: this machine's numbers for one model, in about a minute, through the real engine.

No HTTP, no speculation, no cached prefixes: what is measured is the model on this machine. Speed over HTTP, beside
other servers and with every feature, is measured by `make bench` and `make compare`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from server.engine.engine import Engine
from server.types import (
    Catalogue,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
    ServedModel,
)

USERS = (1, 4, 8, 16)
CHAT_PROMPT = 64  # tokens: a short question with its template
LONG_PROMPT = 1024
FIRST_TOKENS = 5  # of which the median is taken
MIN_TOKENS, MAX_TOKENS = 16, 256


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer, in seconds since the measurement began: when asked, and when each token came."""

    asked: float
    tokens: Sequence[float]

    @property
    def first(self) -> float:
        return self.tokens[0] - self.asked


@dataclass(slots=True)
class Numbers:
    """What was measured. tokens_per_second: output tokens of all together, by the number of users.

    bandwidth: bytes per second. step_bytes: of weights, read for each step. adapter: its name, and the tokens per
    second of one stream on it.
    """

    model: str
    kernel: str
    weights: str
    threads: int
    load_seconds: float
    bandwidth: float
    step_bytes: int
    tokens_per_second: dict[int, float] = field(default_factory=dict)
    first_token_seconds: float = 0.0
    prompt_tokens: int = 0
    prompt_tokens_per_second: float = 0.0
    adapter: tuple[str, float] | None = None
    peak_memory_bytes: int = 0

    @property
    def ceiling(self) -> float:
        """Tokens per second of one stream that reads all weights per token at full bandwidth."""
        return self.bandwidth / self.step_bytes


class Bench:
    """Measures an engine that runs. room: positions that the KV cache holds in all."""

    def __init__(self, engine: Engine, catalogue: Catalogue, *, room: int, most_users: int) -> None:
        self._engine = engine
        self._catalogue = catalogue
        self._room = min(room, catalogue.max_context * most_users)
        self._most_users = most_users
        self._numbers = itertools.count()

    async def measure(self, numbers: Numbers, *, seconds: float = 6.0) -> None:
        """Fills numbers in. seconds: about what each number of users is measured for."""
        base = self._catalogue.find("base")
        context = self._catalogue.max_context
        short, long = (
            min(CHAT_PROMPT, context // 4),
            min(LONG_PROMPT, context // 2, self._room // 2),
        )
        (warm,) = await self._together(base, 1, short, MIN_TOKENS)
        pace = len(warm.tokens) / max(warm.tokens[-1] - warm.asked, 1e-6)
        firsts = [(await self._together(base, 1, short, 1))[0].first for _ in range(FIRST_TOKENS)]
        numbers.first_token_seconds = median(firsts)
        prompts = [(await self._together(base, 1, long, 1))[0].first for _ in range(3)]
        numbers.prompt_tokens = long
        numbers.prompt_tokens_per_second = long / median(prompts)
        count = 0
        for users in USERS:
            if users > self._most_users or users * (short + MIN_TOKENS) > self._room:
                break
            count = self._length(pace * seconds, short, users)
            streams = await self._together(base, users, short, count)
            numbers.tokens_per_second[users] = rate(streams)
        for info in self._catalogue.list():
            if info.parent is not None:
                count = self._length(pace * seconds, short, 1)
                streams = await self._together(self._catalogue.find(info.id), 1, short, count)
                numbers.adapter = (info.id, rate(streams))
                break
        numbers.peak_memory_bytes = peak_memory_bytes()

    def _length(self, wished: float, prompt: int, users: int) -> int:
        """Tokens to draw for each user: as wished, as far as the context and the cache allow."""
        most = min(MAX_TOKENS, self._catalogue.max_context - prompt, self._room // users - prompt)
        return max(min(int(wished), most), min(MIN_TOKENS, most))

    async def _together(
        self, model: ServedModel, users: int, prompt: int, tokens: int
    ) -> list[Stream]:
        """So many answers at once, each of exactly so many tokens, to prompts that nobody has seen."""
        return await asyncio.gather(*(self._stream(model, prompt, tokens) for _ in range(users)))

    async def _stream(self, model: ServedModel, prompt: int, tokens: int) -> Stream:
        number = next(self._numbers)
        draw = random.Random(number)
        ids = tuple(draw.randrange(self._catalogue.vocab_size) for _ in range(prompt))
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        request = GenerationRequest(
            f"bench-{number}", model, ids, params, cache_scope=f"bench-{number}"
        )
        asked = time.perf_counter()
        came: list[float] = []
        async for event in self._engine.submit(request):
            if isinstance(event, Failed):
                raise event.error
            came += [time.perf_counter()] * len(getattr(event, "token_ids", ()))
            if isinstance(event, Finished):
                break
        return Stream(asked, came)


def rate(streams: Sequence[Stream]) -> float:
    """Tokens per second of all together, from when the last has begun to when the first ends: all run in between."""
    begin = max(stream.tokens[0] for stream in streams)
    end = min(stream.tokens[-1] for stream in streams)
    drawn = sum(begin < moment <= end for stream in streams for moment in stream.tokens)
    if drawn == 0 or end <= begin:  # too short to overlap: then of the whole
        begin = min(stream.asked for stream in streams)
        end = max(stream.tokens[-1] for stream in streams)
        drawn = sum(len(stream.tokens) for stream in streams)
    return drawn / (end - begin)


def peak_memory_bytes() -> int:
    """Of this process since its start, the bandwidth's measurement included."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
