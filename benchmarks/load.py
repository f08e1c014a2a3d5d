"""Puts load on a server: so many chats at once for a while, or conversations one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle

import httpx

from benchmarks.client import Sample, Target, ask
from benchmarks.figures import Level, Turns, summarise, summarise_turns
from benchmarks.workload import Chat, Workload


async def run_level(
    client: httpx.AsyncClient,
    targets: Sequence[Target],
    chats: Sequence[Chat],
    *,
    concurrency: int,
    max_tokens: int,
    limit_seconds: float,
) -> Level:
    """Plays the chats, `concurrency` at a time, each on the next target in turn.

    After limit_seconds no further request is begun; what runs is finished and counts.
    """
    waiting = list(zip(chats, cycle(targets)))[::-1]
    samples: list[Sample] = []
    deadline = time.monotonic() + limit_seconds

    async def user() -> None:
        while waiting and time.monotonic() < deadline:
            chat, target = waiting.pop()
            messages = [{"role": "system", "content": chat.system}] if chat.system else []
            for turn, text in enumerate(chat.turns):
                messages.append({"role": "user", "content": text})
                sample = await ask(client, target, messages, max_tokens, turn)
                samples.append(sample)
                if sample.error is not None or time.monotonic() > deadline:
                    break
                messages.append({"role": "assistant", "content": sample.recording.text})

    await asyncio.gather(*(user() for _ in range(concurrency)))
    return summarise(samples, concurrency)


async def run_conversations(
    client: httpx.AsyncClient,
    target: Target,
    workload: Workload,
    *,
    conversations: int,
    turns: int,
    max_tokens: int,
) -> Turns:
    """One user at a time. Each later turn is asked once more with another opening, cold, for comparison."""
    firsts: list[Sample] = []
    pairs: list[tuple[Sample, Sample]] = []
    for number in range(conversations):
        chat = workload.conversation(turns)
        # Its own opening: what other chats share would make the first turn warm.
        system = f"Session {number:03d} of {time.time_ns():x}. {chat.system}"
        messages = [{"role": "system", "content": system}]
        laters: list[tuple[Sample, list[dict[str, str]]]] = []
        for turn, text in enumerate(chat.turns):
            messages.append({"role": "user", "content": text})
            sample = await ask(client, target, messages, max_tokens, turn)
            if turn == 0:
                firsts.append(sample)
            else:
                laters.append((sample, list(messages)))
            if sample.error is not None:
                break
            messages.append({"role": "assistant", "content": sample.recording.text})
        for number_later, (later, prompt) in enumerate(laters):
            other = f"Session {number:03d}.{number_later} of {time.time_ns():x}. {chat.system}"
            cold = [{"role": "system", "content": other}, *prompt[1:]]
            pairs.append((later, await ask(client, target, cold, 2)))
    return summarise_turns(conversations, firsts, pairs)
