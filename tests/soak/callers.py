"""Callers of every kind, each with one request after the other, and what became of each request.

Every request that is sent ends in exactly one outcome: finished, refused, late (past the deadline that it named),
cancelled by its caller, or lost, which must not be.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.fuzz.raw import damaged, mutated
from tests.soak.asks import Answer, Ask, References, choices

CHAT = "/v1/chat/completions"
FINISHED, REFUSED, LATE, CANCELLED, LOST = "finished", "refused", "late", "cancelled", "lost"
OUTCOMES = (FINISHED, REFUSED, LATE, CANCELLED, LOST)
# What a server says that cannot serve this now: it names a time to come again.
BUSY = (429, 503)


@dataclass(slots=True)
class Tally:
    """sent and outcomes by kind of caller; refusals by status and code; findings: what must not be."""

    sent: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def of(self, outcome: str) -> int:
        return sum(count for (_, o), count in self.outcomes.items() if o == outcome)


class LostError(Exception):
    """A request that came to no end that it may come to."""


class Callers:
    """names: what may be asked for: NAME and NAME@VERSION, there or not. References are by NAME@VERSION.

    keys: the callers share these API keys.
    """

    def __init__(
        self,
        url: str,
        asks: Sequence[Ask],
        references: References,
        names: Sequence[str],
        keys: Sequence[str],
        seed: int,
    ) -> None:
        self.tally = Tally()
        self._url = url
        self._asks = asks
        self._references = references
        self._names = names
        self._keys = keys
        self._seed = seed

    async def run(self, count: int, seconds: float) -> None:
        """`count` callers at a time until `seconds` have passed; each ends its last request."""
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(self._caller(number, deadline) for number in range(count)))

    async def _caller(self, number: int, deadline: float) -> None:
        chance = random.Random(f"{self._seed}-{number}")
        kinds: dict[str, tuple[int, Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]]]
        kinds = {
            "whole": (20, self._whole),
            "stream": (30, self._stream),
            "leaves a stream": (14, self._leave_stream),
            "leaves before": (10, self._leave_whole),
            "reads slowly": (8, self._read_slowly),
            "has no time": (8, self._hurry),
            "breaks the body": (14, self._break_body),
            "lists": (4, self._list),
        }
        names, weights = list(kinds), [weight for weight, _ in kinds.values()]
        # A small window, so that an answer that is not read soon stands in the server.
        slow = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
        transport = httpx.AsyncHTTPTransport(socket_options=slow if number % 4 == 0 else None)
        headers = {"authorization": f"Bearer {self._keys[number % len(self._keys)]}"}
        async with httpx.AsyncClient(
            base_url=self._url, timeout=300, transport=transport, headers=headers
        ) as http:
            while time.monotonic() < deadline:
                kind = chance.choices(names, weights)[0]
                self.tally.sent[kind] += 1
                try:
                    outcome = await kinds[kind][1](http, chance)
                except Exception as error:  # whatever it is, the request is accounted for
                    outcome = LOST
                    self.tally.lost.append(f"{kind}: {error!r}")
                self.tally.outcomes[kind, outcome] += 1

    async def _hurry(self, http: httpx.AsyncClient, chance: random.Random) -> str:
        return await self._whole(
            http, chance, {"x-request-timeout": f"{chance.uniform(0.05, 3):.2f}"}
        )

    async def _whole(
        self, http: httpx.AsyncClient, chance: random.Random, headers: dict[str, str] | None = None
    ) -> str:
        ask, model = self._choose(chance)
        response = await http.post(CHAT, json=ask.body(model), headers=headers)
        if headers and response.status_code == 504:
            return LATE
        if response.status_code != 200:
            return await self._refused(response, chance)
        body = response.json()
        self._compare(body["model"], ask, choices(body), body["usage"]["completion_tokens"])
        return FINISHED

    async def _stream(
        self, http: httpx.AsyncClient, chance: random.Random, pause: float = 0, **more: Any
    ) -> str:
        ask, model = self._choose(chance)
        body = ask.body(model, stream=True, stream_options={"include_usage": True}, **more)
        async with http.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return await self._refused(response, chance)
            texts: dict[int, str] = {}
            ends: dict[int, str] = {}
            model, tokens, last = "", 0, ""
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                last = line.removeprefix("data: ")
                if last == "[DONE]":
                    continue
                chunk = json.loads(last)
                if "error" in chunk:
                    raise LostError(f"in the stream: {chunk['error']}")
                model = chunk["model"]
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                for choice in chunk["choices"]:
                    index = choice["index"]
                    texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
                    if choice["finish_reason"]:
                        ends[index] = choice["finish_reason"]
                if pause:
                    await asyncio.sleep(chance.uniform(0, pause))
            if last != "[DONE]" or texts.keys() != ends.keys():
                raise LostError("the stream ended before the answer")
        self._compare(model, ask, tuple((texts[i], ends[i]) for i in sorted(texts)), tokens)
        return FINISHED

    async def _read_slowly(self, http: httpx.AsyncClient, chance: random.Random) -> str:
        return await self._stream(http, chance, 0.2, logprobs=True, top_logprobs=20)

    async def _leave_stream(self, http: httpx.AsyncClient, chance: random.Random) -> str:
        ask, model = self._choose(chance)
        left = chance.randrange(12)
        async with http.stream("POST", CHAT, json=ask.body(model, stream=True)) as response:
            if response.status_code != 200:
                await response.aread()
                return await self._refused(response, chance)
            async for line in response.aiter_lines():
                left -= bool(line)
                if left <= 0:
                    break
        return CANCELLED

    async def _leave_whole(self, http: httpx.AsyncClient, chance: random.Random) -> str:
        ask, model = self._choose(chance)
        patience = chance.choice([0.001, 0.02, 0.2, 1.0])
        try:
            response = await asyncio.wait_for(http.post(CHAT, json=ask.body(model)), patience)
        except TimeoutError:
            return CANCELLED
        if response.status_code != 200:
            return await self._refused(response, chance)
        body = response.json()
        self._compare(body["model"], ask, choices(body), body["usage"]["completion_tokens"])
        return FINISHED

    async def _break_body(self, http: httpx.AsyncClient, chance: random.Random) -> str:
        """Damaged so that it cannot be valid, or at random, so that it may be; then it must be short."""
        ask, _ = self._choose(chance)
        body: Any = ask.body("base", max_tokens=2)
        if chance.random() < 0.5:
            data = damaged(json.dumps(body).encode(), chance)
        else:
            body = mutated(body, chance)
            if isinstance(body, dict):
                body |= {"max_tokens": 2, "stream": False}
            data = json.dumps(body).encode(errors="replace")
        response = await http.post(CHAT, content=data)
        return FINISHED if response.status_code == 200 else await self._refused(response, chance)

    async def _list(self, http: httpx.AsyncClient, chance: random.Random) -> str:
        response = await http.get(chance.choice(["/v1/models", "/metrics", "/ready", "/health"]))
        return FINISHED if response.status_code == 200 else await self._refused(response, chance)

    def _choose(self, chance: random.Random) -> tuple[Ask, str]:
        return chance.choice(self._asks), chance.choice(self._names)

    async def _refused(self, response: httpx.Response, chance: random.Random) -> str:
        """A refusal has OpenAI's shape; one that asks to come again says when. The caller then waits a little."""
        error = response.json()["error"]
        status = response.status_code
        if (status >= 500 and status not in BUSY) or not error["message"]:
            raise LostError(f"{status}: {error}")
        self.tally.refusals[f"{status} {error['code'] or error['type']}"] += 1
        if status in BUSY:
            wait = int(response.headers["retry-after"])
            if wait < 1:
                raise LostError(f"{status} without a time to wait")
            # Sooner than it was told: a crowd at the door is what is tried here.
            await asyncio.sleep(chance.uniform(0.1, min(wait, 2)))
        return REFUSED

    def _compare(self, model: str, ask: Ask, answer: Answer, tokens: int) -> None:
        self.tally.compared += 1
        self.tally.tokens += tokens
        expected = self._references[model, ask.number]
        if answer != expected:
            self.tally.wrong.append(f"{model}, ask {ask.number}: {answer} is not {expected}")
