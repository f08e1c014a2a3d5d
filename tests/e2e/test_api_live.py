"""The API with the embedded model: forms that always hold at temperature 1, and figures that equal transformers'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.e2e.conftest import live_server
from tests.server.json_schemas import SCHEMAS, satisfies, schemas

pytestmark = pytest.mark.model

ASK: Any = [{"role": "user", "content": "Tell me about the weather in Rome, as JSON."}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(
    embedded_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("api-server")
    with live_server(embedded_model, folder, folder / "log", "--max-context", "1024") as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def check(client: openai.OpenAI, schema: dict[str, Any], seed: int) -> int:
    """How many of four answers came to an end; each of them must satisfy the schema."""
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": schema, "strict": True},
    }
    completion = client.chat.completions.create(
        model="base",
        messages=ASK,
        response_format=wanted,
        temperature=1,
        seed=seed,
        n=4,
        max_tokens=64,
    )
    ended = [c.message.content or "" for c in completion.choices if c.finish_reason == "stop"]
    for text in ended:
        assert satisfies(json.loads(text), schema), (schema, text)
    return len(ended)


def test_known_schemas_are_satisfied_at_temperature_1(client: openai.OpenAI) -> None:
    ended = {
        name: check(client, schema, seed) for seed, (name, schema) in enumerate(SCHEMAS.items())
    }
    assert sum(ended.values()) >= 3 * len(SCHEMAS), ended


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(schema=schemas(), seed=st.integers(0, 2**31))
def test_random_schemas_are_satisfied_at_temperature_1(
    client: openai.OpenAI, schema: dict[str, Any], seed: int
) -> None:
    check(client, schema, seed)


def test_forced_calls_are_valid_at_temperature_1_in_chat_and_responses(
    client: openai.OpenAI,
) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
    for seed in range(2):
        with client.chat.completions.stream(
            model="base",
            messages=ASK,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=1,
            seed=seed,
            max_tokens=200,
        ) as stream:
            choice = stream.get_final_completion().choices[0]
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls or []:
            assert satisfies(json.loads(call.function.arguments), PARAMETERS)
    flat: Any = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
    response = client.responses.create(
        model="base",
        input="Weather in Rome?",
        tools=flat,
        tool_choice={"type": "function", "name": "weather"},
    )
    (called,) = response.output
    assert called.type == "function_call"
    assert satisfies(json.loads(called.arguments), PARAMETERS)


def test_the_official_clients_parse_helpers_work(client: openai.OpenAI) -> None:
    class Weather(BaseModel):
        is_sunny: bool
        level: int | None

    chat = client.chat.completions.parse(
        model="base", messages=ASK, response_format=Weather, max_tokens=60
    )
    assert isinstance(chat.choices[0].message.parsed, Weather)
    response = client.responses.parse(model="base", input="Weather?", text_format=Weather)
    assert isinstance(response.output_parsed, Weather)


def test_echoed_logprobs_equal_transformers(client: openai.OpenAI, embedded_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    model = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32)
    text = "The capital of France is Paris, naïvely 日本."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        reference = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    for prompt in (text, ids):
        scored = client.completions.create(
            model="base", prompt=prompt, echo=True, logprobs=2, max_tokens=1, temperature=0
        )
        logprobs = scored.choices[0].logprobs
        assert logprobs is not None
        assert scored.choices[0].text.startswith(text)
        values, top = logprobs.token_logprobs or [], logprobs.top_logprobs or []
        assert values[0] is None
        for position, token_id in enumerate(ids[1:], 1):
            assert values[position] == pytest.approx(
                reference[position - 1, token_id].item(), abs=2e-3
            )
            best = max(v for v in top[position].values())
            assert best == pytest.approx(reference[position - 1].max().item(), abs=2e-3)
        assert len(logprobs.tokens or []) == len(ids) + 1


def test_the_end_token_is_no_part_of_the_logprobs(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "yes"}}}
    choice = client.chat.completions.create(
        model="base", messages=ASK, response_format=wanted, logprobs=True, max_tokens=20
    ).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    told = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content or ())
    assert told.decode() == choice.message.content == '"yes"'


def test_a_repeated_prompt_is_found_in_the_cache_and_salted_ones_are_not(
    client: openai.OpenAI,
) -> None:
    def cached(**extra: Any) -> int:
        completion = client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": "x " * 100}],
            max_tokens=1,
            extra_body=extra,
        )
        assert completion.usage is not None
        assert completion.usage.prompt_tokens_details is not None
        return completion.usage.prompt_tokens_details.cached_tokens or 0

    cached()
    assert cached() > 50
    assert cached(cache_salt="a") == 0
    assert cached(cache_salt="a") > 50
