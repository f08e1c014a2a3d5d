"""The HTTP surface with a scripted engine behind a real socket: chat, errors, keys, and leaving."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from server.api.request_log import RequestLog
from server.errors import ServerError
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import CHAT, Running, body, running, until


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Echoes the last message; `long` is answered with a slow, long text."""
    engine = FakeEngine(
        script=lambda prompt, request, index: "x" * 200 if prompt == "long" else prompt,
        step_seconds=0.001,
    )
    with running(engine) as server:
        yield server


def idle(server: Running) -> bool:
    return server.engine.running == 0


def test_an_answer_has_openais_shape(server: Running) -> None:
    response = server.chat("héllo", seed=1)
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert response.headers["x-request-id"].startswith("req_")
    assert answer["model"] == "base"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "héllo", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 7,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_stream_keeps_the_wire_contract(server: Running) -> None:
    chunks = server.stream("héé", stream_options={"include_usage": True})
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    first, *middle, finish, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    # Two bytes are one character: never a half one, and no empty content chunk for it either.
    assert "".join(c["choices"][0]["delta"]["content"] for c in middle) == "héé"
    assert all(c["choices"][0]["delta"]["content"] for c in middle)
    assert all(c["choices"][0]["finish_reason"] is None for c in (first, *middle))
    assert finish["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert all(c["usage"] is None for c in chunks[:-1])


def test_characters_that_end_lines_elsewhere_do_not_cut_an_event(server: Running) -> None:
    text = "a\u2028b\x85c\u2029d\re\nf\x0cg"
    raw = server.chat(text, stream=True).text
    assert all(line.startswith("data: ") for line in raw.splitlines() if line)
    chunks = server.stream(text)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text


def test_usage_is_sent_only_when_asked_for(server: Running) -> None:
    assert all("usage" not in chunk for chunk in server.stream("a"))


def test_streamed_and_whole_answers_are_the_same(server: Running) -> None:
    fields = {"n": 3, "max_tokens": 9}
    whole = server.chat("say hello", **fields).json()["choices"]
    streamed: dict[int, list[str]] = {}
    for chunk in server.stream("say hello", **fields):
        for choice in chunk["choices"]:
            streamed.setdefault(choice["index"], []).append(choice["delta"].get("content", ""))
    assert {c["index"]: c["message"]["content"] for c in whole} == {
        index: "".join(parts) for index, parts in streamed.items()
    }
    assert whole[0]["message"]["content"] == "say hello"


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"temperature": 2.1}, 400, "temperature", "2"),
        ({"temperature": -0.1}, 400, "temperature", "0"),
        ({"temperature": "hot"}, 400, "temperature", "number"),
        ({"temperature": True}, 400, "temperature", "number"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"top_p": 1.01}, 400, "top_p", "1"),
        ({"max_tokens": 0}, 400, "max_tokens", "1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "max_completion_tokens", "one"),
        ({"max_tokens": 1000}, 400, "messages", "maximum context length is 256 tokens. However"),
        ({"n": 0}, 400, "n", "1"),
        ({"n": 5}, 400, "n", "at most 4"),
        ({"seed": 2**63}, 400, "seed", "less than"),
        ({"stop": [""]}, 400, "stop.0", "at least 1"),
        ({"stop": ["x"] * 17}, 400, "stop", "16"),
        ({"stop": "x" * 257}, 400, "stop", "256"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
        ({"stream": "true"}, 400, "stream", "boolean"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": "hi"}, 400, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role", "'system'"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": 1}]}, 400, "messages.0.content", "string"),
        ({"model": "gpt-9"}, 404, "model", "This server has: base"),
        ({"model": 7}, 400, "model", "string"),
        ({"top_k": -2}, 400, "top_k", "-1"),
        ({"min_p": 1.1}, 400, "min_p", "1"),
        ({"presence_penalty": 2.1}, 400, "presence_penalty", "2"),
        ({"frequency_penalty": -2.1}, 400, "frequency_penalty", "-2"),
        ({"repetition_penalty": 0}, 400, "repetition_penalty", "greater than 0"),
        ({"logit_bias": {"1": 101}}, 400, "logit_bias.1", "100"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias", "token ids"),
        ({"logit_bias": {"272": 1}}, 400, "logit_bias", "end at 271"),
        ({"stop_token_ids": [272]}, 400, "stop_token_ids", "end at 271"),
        ({"stop_token_ids": [-1]}, 400, "stop_token_ids.0", "0"),
        ({"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens", "limit of 8"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "20"),
        ({"top_logprobs": 1}, 400, "top_logprobs", "'logprobs' is true"),
        ({"n": 129}, 400, "n", "128"),
        ({"cache_salt": ""}, 400, "cache_salt", "1"),
        ({"functions": [{"name": "f"}]}, 400, "functions", "not supported"),
        ({"store": True}, 400, "store", "Nothing is stored"),
        ({"repeat_penalty": 1.1}, 400, "repeat_penalty", "'repetition_penalty'"),
        ({"tools": [{"type": "function"}]}, 400, "tools.0.function", "required"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools.0.type", "'function'"),
        ({"tool_choice": "required"}, 400, "tool_choice", "'tools' has none"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            400,
            "tool_choice",
            "no function 'f'",
        ),
        ({"response_format": {"type": "xml"}}, 400, "response_format", "'json_schema'"),
        (
            {"response_format": {"type": "json_schema"}},
            400,
            "response_format.json_schema",
            "required",
        ),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            400,
            "continue_final_message",
            "exclude",
        ),
        ({"continue_final_message": True}, 400, "continue_final_message", "'assistant'"),
        ({"max_tokens": 10**4000}, 400, "max_tokens", "less than"),
        ({"max_tokens": 2**63}, 400, "max_tokens", "less than"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "messages", "empty"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            400,
            "messages.0.tool_calls.0.function",
            "required",
        ),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
            400,
            "messages.0.tool_call_id",
            "preceding message",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            400,
            "messages.0.tool_call_id",
            "required",
        ),
        (
            {"stream": True, "stream_options": {"include_usage": "yes"}},
            400,
            "stream_options.include_usage",
            "boolean",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "messages.0.content.0.type",
            "'text'",
        ),
    ],
)
def test_a_bad_request_is_refused_in_words_that_name_the_field(
    server: Running, fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    for stream in (False, True):
        if "stream_options" in fields and stream:
            continue  # it is right there
        response = server.chat(**{"stream": stream, **fields})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"]


def test_fields_that_ask_for_nothing_are_accepted(server: Running) -> None:
    nothing = {
        "stop": None,
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "logit_bias": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "user": "me",
        "metadata": {"run": "7"},
        "stream_options": None,
        "n": None,
        "top_k": None,
        "repeat_penalty": 1,
        "modalities": ["text"],
        "chat_template_kwargs": {},
        "best_of": None,
    }
    assert server.chat(**nothing).status_code == 200


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'"text"', b"\xff", b'{"model": NaN}', b"[" * 9999]
)
def test_a_body_that_is_no_json_object_is_a_400(server: Running, data: bytes) -> None:
    response = server.http.post(CHAT, content=data)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_answer_in_the_same_shape(server: Running) -> None:
    assert "/v1/chat/completions" in server.http.get("/v2").json()["error"]["message"]
    assert server.http.get(CHAT).status_code == 405
    assert "error" in server.http.get(CHAT).json()


def test_one_model_can_be_looked_up(server: Running) -> None:
    assert (
        server.http.get("/v1/models/base").json() == server.http.get("/v1/models").json()["data"][0]
    )
    refusal = server.http.get("/v1/models/some/other")
    assert refusal.status_code == 404
    assert refusal.json()["error"]["code"] == "model_not_found"


def test_probes_answer_head_requests(server: Running) -> None:
    for path in ("/health", "/ready"):
        assert server.http.head(path).status_code == 200


def test_content_parts_and_developer_role_are_understood(server: Running) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    answer = server.http.post(CHAT, json={"model": "base", "messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == "ab"


def test_an_answer_can_be_sent_back_as_it_came(server: Running) -> None:
    """The official client's own way to go on: messages.append(completion.choices[0].message)."""
    client = openai.OpenAI(base_url=f"{server.http.base_url}/v1", api_key="x", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": "one"}]
    for _ in range(2):
        completion = client.chat.completions.create(model="base", messages=messages)
        messages.append(completion.choices[0].message)
        messages.append({"role": "user", "content": "two"})
    assert [m.content for m in messages[1::2]] == ["one", "two"]
    dumped = messages[1].model_dump()  # with every field that the client knows, as null
    again = {"model": "base", "messages": [dumped, {"role": "user", "content": "three"}]}
    assert server.http.post(CHAT, json=again).status_code == 200


def test_a_reader_who_leaves_stops_the_computing(server: Running) -> None:
    with server.http.stream("POST", CHAT, json=body("long", stream=True)) as response:
        lines = response.iter_lines()  # kept: collecting it would close the connection
        next(lines)
        assert not idle(server)
    until(lambda: idle(server))
    drawn = server.engine.tokens_drawn
    time.sleep(0.1)
    assert server.engine.tokens_drawn == drawn


def test_leaving_before_the_first_token_or_without_streaming_stops_it_too() -> None:
    with running(FakeEngine(step_seconds=0.2)) as server:
        for stream in (True, False):
            # Impatient with the answer alone: connecting may take its time on a busy machine.
            patience = httpx.Timeout(60, read=0.05)
            with pytest.raises(httpx.ReadTimeout):
                server.http.post(CHAT, json=body("a long text", stream=stream), timeout=patience)
            until(lambda: idle(server))
        assert server.engine.tokens_drawn <= 4, "it went on for its whole length (24 tokens)"
        assert server.chat("x").status_code == 200


def test_leaving_in_the_middle_of_the_body_is_no_error_of_ours(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.http.base_url
    with socket.create_connection((url.host, url.port)) as half:
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
        )
        time.sleep(0.1)
    time.sleep(0.1)
    assert server.chat().status_code == 200
    assert "Traceback" not in caplog.text


def test_a_full_queue_is_a_429_with_retry_after() -> None:
    with running(FakeEngine(max_running=2)) as server:
        server.engine.gate.clear()
        threads = [threading.Thread(target=server.chat) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: server.engine.running == 2)
        response = server.chat()
        server.engine.gate.set()
        for thread in threads:
            thread.join()
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_a_fault_before_the_first_byte_is_a_500_and_after_it_an_error_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "lorachat.request")
    with running(FakeEngine(fail_after=2), reporters=[RequestLog()]) as server:
        whole = server.chat()
        chunks = server.stream()
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "engine_error"
    assert [c["choices"][0]["delta"].get("content") for c in chunks[:-1]] == ["", "h", "e"]
    assert chunks[-1]["error"]["code"] == "engine_error"
    until(lambda: len(caplog.records) == 2)
    assert [r.fields["outcome"] for r in caplog.records] == ["failed", "failed"]  # type: ignore[attr-defined]


def test_loading_and_broken_servers_say_so() -> None:
    with running(loaded=False) as server:
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/ready").json() == {"status": "loading"}
        refusal = server.chat()
        assert refusal.status_code == 503
        assert "retry-after" in refusal.headers
        server.service.set_failed("The model could not be loaded.")
        assert server.http.get("/health").status_code == 503
        assert server.http.get("/ready").json() == {"status": "failed"}


def test_keys_are_asked_for_everywhere_but_at_the_probes() -> None:
    with running(api_keys=["first", "second"]) as server:
        http = server.http
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 200
        for path in ("/v1/models", "/openapi.json", "/nothing"):
            response = http.get(path)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        for wrong in ("Bearer wrong", "Bearer", "Bearer firs", "Basic first", "Bearer ï"):
            headers = {"authorization": wrong.encode("latin-1")}
            assert http.get("/v1/models", headers=headers).status_code == 401
        for right in ({"authorization": "Bearer second"}, {"x-api-key": "first"}):
            assert http.get("/v1/models", headers=right).status_code == 200


def test_a_body_over_the_limit_is_a_413_announced_or_not() -> None:
    with running(max_body_bytes=2000) as server:
        assert server.chat("x" * 3000).status_code == 413

        def chunked() -> Iterator[bytes]:
            for _ in range(30):
                yield b"x" * 100

        assert server.http.post(CHAT, content=chunked()).status_code == 413
        assert server.chat("x" * 200).status_code == 200


def test_silence_in_a_stream_is_filled_with_comments() -> None:
    with running(FakeEngine(step_seconds=0.15), keepalive_seconds=0.05) as server:
        lines = server.chat("a", stream=True).text.splitlines()
    assert ": keep-alive" in lines
    data = [line for line in lines if line.startswith("data: ")]
    assert json.loads(data[1].removeprefix("data: "))["choices"][0]["delta"] == {"content": "a"}


def test_every_error_has_its_place_on_the_wire() -> None:
    """A new exception without a row in the table would come out as a bare 500."""
    from server import errors
    from server.api.errors import _TABLE

    never_in_a_request = {errors.ServerError, errors.RequestError, errors.StartupError}
    mapped = tuple(kind for kind, *_ in _TABLE)
    pending = [ServerError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind not in never_in_a_request and not issubclass(kind, errors.StartupError):
            assert issubclass(kind, mapped), kind
