"""The published adapter in vLLM, unchanged: the same prompts, tokens and ends, and the same clients.

Its name keeps it out of `make test`: it needs an environment of gigabytes. `make test-vllm` runs it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from client.api import ChatClient
from client.metrics import parse
from client.types import ChatRequest, Done, Message, Sampling
from client.ui.catalog import look
from tests.conftest import ROOT
from tests.e2e.conftest import NAME, LiveServer

MODELS = ("base", NAME)
QUESTIONS = [
    "My computer won't start",
    "Who was Ada Lovelace?",
    "List three fruits.",
    "I can't hear any sound.",
    "Write a haiku about rain.",
    "What is 12 times 7?",
]
TOKENS = 48
# Two float32 programs sum in different orders. Log-probabilities differ by that; where two tokens are closer than that,
# either may come first, and the texts part.
ROUNDING = 1e-3

Answer = dict[str, Any]


def ask(url: str, model: str, messages: list[dict[str, str]]) -> Answer:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": TOKENS,
            "logprobs": True, "top_logprobs": 2}  # fmt: skip
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ask_all(url: str) -> dict[tuple[str, str], Answer]:
    """Every question to every model, once, one at a time.

    Four at a time vLLM's build for CPUs gave other log-probabilities to questions for the base that ran beside the
    adapter's, by up to 0.1.
    """
    return {
        (model, text): ask(url, model, question(text)) for model in MODELS for text in QUESTIONS
    }


@pytest.fixture(scope="module")
def answered(vllm: LiveServer, ours: str) -> tuple[dict[Any, Answer], dict[Any, Answer]]:
    """vLLM's answers and ours, by model and question."""
    return ask_all(vllm.url), ask_all(ours)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def tokens(answer: Answer) -> list[dict[str, Any]]:
    return list(answer["choices"][0]["logprobs"]["content"])


def is_tie(entry: dict[str, Any]) -> bool:
    first, second = (top["logprob"] for top in entry["top_logprobs"])
    return bool(first - second < ROUNDING)


@pytest.mark.parametrize("text", QUESTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_are_ours_token_by_token(
    answered: tuple[dict[Any, Answer], dict[Any, Answer]], model: str, text: str
) -> None:
    theirs, own = (answers[model, text] for answers in answered)
    assert theirs["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"]
    # vLLM lists the token that ended the answer, we do not; both count it.
    for one, other in zip(tokens(theirs), tokens(own), strict=False):
        if one["bytes"] != other["bytes"]:
            assert is_tie(one), f"{one} against {other}"
            assert is_tie(other), f"{one} against {other}"
            return
        assert one["logprob"] == pytest.approx(other["logprob"], abs=ROUNDING)
    assert theirs["choices"][0]["message"]["content"] == own["choices"][0]["message"]["content"]
    assert theirs["choices"][0]["finish_reason"] == own["choices"][0]["finish_reason"]
    assert theirs["usage"]["completion_tokens"] == own["usage"]["completion_tokens"]


def test_the_adapter_is_applied_and_ends_by_its_stop_token(
    answered: tuple[dict[Any, Answer], dict[Any, Answer]],
) -> None:
    theirs, _ = answered
    answers = {model: [theirs[model, text]["choices"][0] for text in QUESTIONS] for model in MODELS}
    said = {m: [choice["message"]["content"] for choice in a] for m, a in answers.items()}
    assert said["base"] != said[NAME]
    assert all("<|im_" not in text for text in said[NAME])
    assert "stop" in {choice["finish_reason"] for choice in answers[NAME]}


def test_a_conversation_is_rendered_by_the_same_template(vllm: LiveServer, ours: str) -> None:
    messages = [
        {"role": "system", "content": "You are terse."},
        *question("Hello"),
        {"role": "assistant", "content": "Hi."},
        *question("What is the capital of France?"),
    ]
    ids = [
        httpx.post(f"{url}/tokenize", json={"model": NAME, "messages": messages}).json()["tokens"]
        for url in (vllm.url, ours)
    ]
    assert ids[0] == ids[1]


def test_the_web_clients_layer_works_unmodified(vllm: LiveServer) -> None:
    async def use() -> tuple[Any, str | None, list[Any]]:
        async with ChatClient(vllm.url) as client:
            request = ChatRequest(
                NAME, (Message("user", QUESTIONS[0]),), Sampling(temperature=0, max_tokens=TOKENS)
            )
            async with aclosing(client.stream(request)) as stream:
                events = [event async for event in stream]
            return await look(client), await client.metrics(), events

    catalog, metrics, events = asyncio.run(use())
    assert catalog.error is None
    assert [model.id for model in catalog.models] == ["base", NAME]
    assert catalog.summary == "base and 1 adapter"
    done = events[-1]
    assert isinstance(done, Done)
    assert done.usage is not None
    assert done.usage.completion_tokens > 0
    assert metrics is not None
    assert parse(metrics, 0.0).values["vllm:generation_tokens_total"] > 0


def test_the_terminal_client_works_unmodified(vllm: LiveServer, ours: str) -> None:
    def client(*arguments: str, given: str = "") -> str:
        result = subprocess.run(
            [sys.executable, "-m", "client", *arguments],
            cwd=ROOT, env={**os.environ}, input=given, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    fixed = ["--model", NAME, "--temperature", "0", "--max-tokens", str(TOKENS)]
    own, theirs = (client("ask", QUESTIONS[0], "--server", url, *fixed) for url in (ours, vllm.url))
    assert theirs == own != "\n"
    lines = f"{QUESTIONS[0]}\n/quit\n"
    own, theirs = (client("chat", "--server", url, *fixed, given=lines) for url in (ours, vllm.url))
    assert own.splitlines()[0] in theirs
