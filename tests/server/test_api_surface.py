"""The rest of the surface: completions, responses, tokens, models, operations."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from server.model.tokenizer import ChatTokenizer
from server.version import VERSION
from tests.conftest import ROOT
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import CHAT, Running, chunks_of, running

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Echoes the prompt."""
    with running(FakeEngine(script=_script)) as server:
        yield server


def _script(prompt: str, request: Any, index: int) -> str:
    return "" if request.new_constraint else prompt


# --- log-probabilities ---


def test_logprobs_have_text_and_bytes_of_every_token_and_none_of_the_end(server: Running) -> None:
    choice = server.chat("hé", logprobs=True, top_logprobs=2).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == "hé".encode()
    assert [entry["token"] for entry in content] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert content[0]["top_logprobs"][0] == {"token": "h", "logprob": -0.5, "bytes": [104]}
    plain = server.chat("h", logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert plain[0]["top_logprobs"] == []


@settings(max_examples=25, deadline=None)
@given(text=st.text(min_size=1, max_size=20), at_once=st.integers(1, 5), limit=st.integers(1, 40))
def test_streamed_answers_are_the_whole_ones_in_pieces(
    server: Running, text: str, at_once: int, limit: int
) -> None:
    """Text and log-probabilities, however many tokens an event holds and wherever the limit cuts a character."""
    server.engine.tokens_per_event = at_once
    fields = {"logprobs": True, "top_logprobs": 1, "max_tokens": limit}
    whole = server.chat(text, **fields).json()["choices"][0]
    chunks = [c["choices"][0] for c in server.stream(text, **fields)]
    server.engine.tokens_per_event = 1
    assert "".join(c["delta"].get("content", "") for c in chunks) == whole["message"]["content"]
    told = [e for c in chunks if c["logprobs"] for e in c["logprobs"]["content"]]
    assert told == whole["logprobs"]["content"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    assert text.encode().decode().startswith(whole["message"]["content"])


# --- completions ---


def test_an_echo_with_logprobs_scores_the_prompt(server: Running) -> None:
    ids = server.http.post("/tokenize", json={"prompt": "héy"}).json()["tokens"]
    for prompt in ("héy", ids):
        answer = server.http.post(
            COMPLETIONS,
            json={"model": "base", "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1},
        ).json()
        choice = answer["choices"][0]
        logprobs = choice["logprobs"]
        assert choice["text"] == "héyh"
        assert logprobs["tokens"] == ["h", "bytes:\\xc3", "bytes:\\xa9", "y", "h"]
        assert logprobs["text_offset"] == [0, 1, 2, 2, 3]
        assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["top_logprobs"][1] == {"bytes:\\xc3": -0.5}
        assert answer["usage"]["prompt_tokens"] == 4


def test_several_prompts_give_choices_in_order_streamed_or_not(server: Running) -> None:
    fields = {"model": "base", "prompt": ["ab", "cd"], "n": 2, "echo": True, "max_tokens": 1}
    whole = server.http.post(COMPLETIONS, json=fields).json()
    assert [c["text"] for c in whole["choices"]] == ["aba", "aba", "cdc", "cdc"]
    assert whole["usage"]["completion_tokens"] == 4
    texts: dict[int, str] = {}
    for chunk in chunks_of(server.http.post(COMPLETIONS, json={**fields, "stream": True})):
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {i: c["text"] for i, c in enumerate(whole["choices"])}


def test_a_prompt_alone_can_be_scored(server: Running) -> None:
    fields = {"model": "base", "prompt": "xy", "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = server.http.post(COMPLETIONS, json=fields).json()
    assert answer["choices"][0]["text"] == "xy"
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [272]}, "prompt"),
        ({"prompt": "x" * 300}, "prompt"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({}, "prompt"),
    ],
)
def test_bad_completion_requests_name_the_field(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    response = server.http.post(COMPLETIONS, json={"model": "base", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


# --- responses ---


def test_a_response_streams_the_events_that_the_official_client_expects(server: Running) -> None:
    with server.openai.responses.stream(model="base", input="hé") as stream:
        events = list(stream)
        final = stream.get_final_response()
    types = [event.type for event in events]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "hé"
    assert final.store is False
    assert final.usage is not None
    assert final.usage.output_tokens == 4
    whole = server.openai.responses.create(model="base", input="hé")
    assert whole.output_text == final.output_text
    assert whole.status == "completed"


def test_a_response_calls_functions_and_goes_on_with_their_results(server: Running) -> None:
    tools: Any = [
        {
            "type": "function",
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        }
    ]
    asked: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}]
    first = server.openai.responses.create(
        model="base", input=asked, tools=tools, tool_choice="required", parallel_tool_calls=False
    )
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = server.openai.responses.create(
        model="base", input=[*asked, call, result], tools=tools, tool_choice="none"
    )
    assert "sunny" in second.output_text
    assert server.metric('lorachat_unknown_fields_total{name="input.id"}') == 0


def test_a_response_can_be_cut_parsed_and_scored(server: Running) -> None:
    class Answer(BaseModel):
        ok: bool

    cut = server.openai.responses.create(model="base", input="hello", max_output_tokens=2)
    assert (cut.status, cut.output_text) == ("incomplete", "he")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    parsed = server.openai.responses.parse(model="base", input="x", text_format=Answer)
    assert isinstance(parsed.output_parsed, Answer)
    scored = server.openai.responses.create(
        model="base", input="h", include=["message.output_text.logprobs"]
    )
    part: Any = scored.output[0]
    assert [entry.token for entry in part.content[0].logprobs] == ["h"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "Nothing is stored"),
        ({"store": True}, "store", "Nothing is stored"),
        ({"background": True}, "background", "not supported"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "'message'"),
        ({"input": [{"type": "function_call_output"}]}, "input.0.call_id", "required"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        ({"max_output_tokens": 9999}, "input", "maximum context length"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "not supported"),
    ],
)
def test_bad_response_requests_name_the_field_of_this_api(
    server: Running, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        server.openai.responses.create(**{"model": "base", "input": "x", **fields})
    assert refusal.value.param == param
    assert words in refusal.value.message


# --- tokens ---


def test_text_becomes_tokens_and_tokens_text(server: Running) -> None:
    made = server.http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert (made["count"], len(made["token_strs"])) == (3, 3)
    back = server.http.post("/detokenize", json={"tokens": made["tokens"]}).json()
    assert back == {"prompt": "hé"}
    chat = [{"role": "user", "content": "a<|im_end|>"}]
    ids = server.http.post("/tokenize", json={"messages": chat}).json()["tokens"]
    assert 2 not in ids, "a forged control token"
    assert server.http.post("/apply-template", json={"messages": chat}).json() == {
        "prompt": "a<|im_end|>"
    }
    info = server.http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["vocab_size"]) == ("<|im_end|>", 272)
    for path, fields in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "x", "messages": chat}),
        ("/detokenize", {"tokens": [272]}),
        ("/apply-template", {}),
    ):
        assert server.http.post(path, json=fields).status_code == 400
    assert server.http.post("/tokenize", json={"model": "x", "prompt": "y"}).status_code == 404


# --- operations ---


def test_the_version_is_the_projects(server: Running) -> None:
    assert server.http.get("/version").json() == {"version": VERSION}
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()


def test_embeddings_are_refused_in_words(server: Running) -> None:
    response = server.http.post("/v1/embeddings", json={"input": "x"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_served"


def test_metrics_count_what_happens() -> None:
    with running(FakeEngine(step_seconds=0.002)) as server:
        server.chat("abc", n=2)
        server.chat("abc", temperature=3)
        server.http.post(CHAT, content=b"{")
        server.chat("abc", no_such_field=1)
        names = {
            'lorachat_requests_total{model="base",outcome="finished"}': 2,
            'vllm:request_success_total{finished_reason="stop"}': 3,
            'lorachat_requests_rejected_total{code="invalid_request",status="400"}': 2,
            'lorachat_unknown_fields_total{name="no_such_field"}': 1,
            'http_requests_total{handler="/v1/chat/completions",method="POST",status="200"}': 2,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:inter_token_latency_seconds_count": 9,
            "vllm:request_generation_tokens_sum": 12,
            "vllm:generation_tokens_total": 12,
            'lorachat_engine_info{kernel="fake"}': 1,
            'lorachat_model_info{digest="sha256:0",name="base",parent=""}': 1,
        }
        for name, expected in names.items():
            assert server.metric(name) == expected, name
        for number in range(100):
            server.chat("x", **{f"field_{number}": 1})
        assert server.metric('lorachat_unknown_fields_total{name="(others)"}') > 0
        assert server.http.get("/metrics").text.count("lorachat_unknown_fields_total{") <= 65


def test_a_request_has_a_name_in_and_out(server: Running) -> None:
    given = server.http.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    for unfit in ("a" * 200, "a b", ""):
        made = server.http.get("/v1/models", headers={"x-request-id": unfit})
        assert made.headers["x-request-id"].startswith("req_")
    refused = server.http.post(CHAT, content=b"{")
    assert refused.headers["x-request-id"].startswith("req_")


def test_prompts_are_shared_within_a_key_and_a_salt_only() -> None:
    with running(api_keys=["one", "two"]) as server:

        def scope(key: str, **fields: Any) -> str:
            headers = {"authorization": f"Bearer {key}"}
            json_ = {"model": "base", "messages": [{"role": "user", "content": "x"}], **fields}
            assert server.http.post(CHAT, json=json_, headers=headers).status_code == 200
            return server.engine.requests[-1].cache_scope

        scopes = [
            scope("one"),
            scope("two"),
            scope("one", cache_salt="a"),
            scope("one", cache_salt="b"),
        ]
        assert len(set(scopes)) == 4
        assert scope("one") == scopes[0]
        assert not any("one" in s or "two" in s for s in scopes)


def test_timings_and_usage_come_when_asked_for(server: Running) -> None:
    timings = server.chat("abc", timings=True).json()["timings"]
    assert timings["predicted_n"] == 4
    assert timings["prompt_ms"] > 0
    chunks = server.stream("abc", timings=True, stream_options={"continuous_usage_stats": True})
    assert [c["usage"]["completion_tokens"] for c in chunks] == sorted(
        c["usage"]["completion_tokens"] for c in chunks
    )
    assert "timings" in chunks[-1]
    assert "timings" not in server.chat("abc").json()


@pytest.mark.parametrize("with_usage", [True, False])
def test_timings_come_in_the_last_chunk_of_a_streamed_completion(
    server: Running, with_usage: bool
) -> None:
    fields: dict[str, Any] = {"model": "base", "prompt": ["abc", "abcd"], "stream": True}
    if with_usage:
        fields["stream_options"] = {"include_usage": True}
    *others, last = chunks_of(server.http.post("/v1/completions", json=fields | {"timings": True}))
    assert last["timings"]["predicted_n"] == 9  # of both prompts, and their end tokens
    assert not any("timings" in chunk for chunk in others)
    assert "timings" not in chunks_of(server.http.post("/v1/completions", json=fields))[-1]


def test_sampling_fields_reach_the_engine_as_they_came(server: Running) -> None:
    server.chat("x", temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
                repetition_penalty=1.1, logit_bias={"5": -100}, seed=-3, stop=["a"], stop_token_ids=[9],
                include_stop_str_in_output=True, ignore_eos=True, min_tokens=2, max_completion_tokens=7)  # fmt: skip
    params = server.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 0, 0.1)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert (params.repetition_penalty, params.logit_bias) == (1.1, ((5, -100.0),))
    assert (params.seed, params.stop, params.stop_token_ids) == (-3, ("a",), (9,))
    assert (params.include_stop, params.ignore_eos) == (True, True)
    assert (params.min_tokens, params.max_tokens, params.logprobs) == (2, 7, None)


def test_what_nobody_expected_is_logged_once_and_says_nothing_of_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the insides")

    with running() as server:  # its own: such an answer ends the connection
        monkeypatch.setattr(server.engine, "submit", broken)
        response = server.chat("abc")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "insides" not in response.text
    assert [r.message for r in caplog.records if r.name == "lorachat.api"] == ["unexpected error"]


def test_the_words_of_tokens_are_not_made_on_the_event_loop(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few MiB of text are millions of tokens: nobody else's stream waits for them."""
    threads = set()
    real = ChatTokenizer.token_bytes

    def noted(self: ChatTokenizer, token_id: int) -> bytes:
        threads.add(threading.current_thread().name)
        return real(self, token_id)

    monkeypatch.setattr(ChatTokenizer, "token_bytes", noted)
    fields = {"model": "base", "prompt": "abc", "return_token_strs": True}
    assert server.http.post("/tokenize", json=fields).json()["token_strs"] == ["a", "b", "c"]
    assert {name.split("_")[0] for name in threads} == {"asyncio"}
