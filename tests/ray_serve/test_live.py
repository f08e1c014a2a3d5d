"""What a user of one server relies on holds with several engines, and what several are for. In the order of the file:
the last tests kill and replace engines, and stop the cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import ROOT
from tests.ray_serve.conftest import (
    ADMIN_KEY,
    DRAIN_SECONDS,
    KEY,
    LIMITED_KEY,
    MAX_BODY,
    MAX_RUNNING,
    MAX_WAITING,
    OTHER_KEY,
    PYTHON,
    REPLICA,
    TOKENS_PER_MINUTE,
    Cluster,
    until,
)
from tests.ray_serve.load import Load, chat

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.model
# A hash decides where a session goes: so many of them on one engine out of two would be no chance.
MANY = 64


def from_all(cluster: Cluster, body: dict[str, Any]) -> list[httpx.Response]:
    """The same question in session after session, until every engine has answered one."""
    engines, answers = cluster.engines, []
    for number in range(MANY):
        answers.append(cluster.post(CHAT, body, **{"x-session-id": f"session-{number}"}))
        assert answers[-1].status_code == 200, answers[-1].text
        if {answer.headers[REPLICA] for answer in answers} == engines:
            return answers
    raise AssertionError(f"of {len(engines)} engines not all work")


def test_an_engine_is_started_when_requests_are_more_than_one_engine_should_have(
    cluster: Cluster,
) -> None:
    assert len(cluster.engines) == 1
    enough = threading.Event()

    def ask() -> set[int]:
        statuses = set()
        while not enough.is_set():
            answer = cluster.post(CHAT, chat("More.", max_tokens=30, ignore_eos=True))
            statuses.add(answer.status_code)
        return statuses

    with ThreadPoolExecutor(MAX_RUNNING) as pool:
        asking = [pool.submit(ask) for _ in range(MAX_RUNNING)]
        try:
            until(lambda: len(cluster.engines) == 2, 240, "there is no second engine")
        finally:
            enough.set()
    assert set.union(*(future.result() for future in asking)) == {200}


def test_the_official_client_gets_the_same_streamed_and_whole(cluster: Cluster) -> None:
    asked: Any = {
        "model": "base",
        "messages": [{"role": "user", "content": "Name three fruits."}],
        "temperature": 0,
        "max_tokens": 24,
    }
    whole = cluster.openai.chat.completions.create(**asked)
    chunks = list(
        cluster.openai.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_all_engines_work_and_give_the_same_answer(cluster: Cluster) -> None:
    """Conversations spread over the engines; greedy answers do not depend on where they land."""
    answers = from_all(cluster, chat("Say hello.", max_tokens=8))
    assert len(cluster.engines) == 2
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 1


def test_a_conversation_stays_with_the_engine_that_has_its_beginning(cluster: Cluster) -> None:
    seen = set()
    for number in range(MANY):
        body = chat(f"Tell me about the number {number}.", max_tokens=12)
        first = cluster.post(CHAT, body)
        reply = first.json()["choices"][0]["message"]
        body["messages"] += [
            {"role": "assistant", "content": reply["content"]},
            {"role": "user", "content": "And the next one?"},
        ]
        second = cluster.post(CHAT, body)
        assert second.headers[REPLICA] == first.headers[REPLICA]
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 20
        seen.add(first.headers[REPLICA])
        if number >= 3 and seen == cluster.engines:
            return
    raise AssertionError("all conversations are with one engine")


def test_requests_with_one_prompt_cache_key_meet(cluster: Cluster) -> None:
    answers = [
        cluster.post(CHAT, chat(f"Question {n}?", max_tokens=1, prompt_cache_key="tenant-7"))
        for n in range(8)
    ]
    assert len({answer.headers[REPLICA] for answer in answers}) == 1


def test_one_key_policy_before_all_engines(cluster: Cluster) -> None:
    for path in ("/v1/models", "/metrics", "/version"):
        assert httpx.get(cluster.url + path).status_code == 401
        assert cluster.get(path).status_code == 200
    refused = httpx.post(cluster.url + CHAT, json=chat("Hi."), headers={"x-api-key": "wrong"})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert REPLICA not in refused.headers
    assert cluster.post(CHAT, chat("x" * MAX_BODY)).status_code == 413
    assert cluster.post(CHAT, {"model": "base"}).status_code == 400
    assert cluster.post(CHAT, chat("Hi.", model="nobody")).status_code == 404


def test_one_keys_cached_prefixes_are_not_anothers(cluster: Cluster) -> None:
    body = chat("A prompt that is long enough to be cached, for its own key alone.", max_tokens=1)
    alone = cluster.post(CHAT, chat("Else.", max_tokens=1)).json()["usage"]
    shared = alone["prompt_tokens_details"]["cached_tokens"]  # the system prompt of the template

    def cached(key: str) -> int:
        used = cluster.post(CHAT, body, **{"x-api-key": key}).json()["usage"]
        return int(used["prompt_tokens_details"]["cached_tokens"])

    cached(KEY)
    assert cached(KEY) > shared
    assert cached(OTHER_KEY) <= shared


def test_a_keys_quota_is_for_all_engines_together(cluster: Cluster) -> None:
    used, replicas = 0, set()
    for number in range(MANY):
        headers = {"x-api-key": LIMITED_KEY, "x-session-id": f"limited-{number}"}
        answer = cluster.post(CHAT, chat("Hi.", max_tokens=8, ignore_eos=True), **headers)
        if answer.status_code == 429:
            break
        used += answer.json()["usage"]["total_tokens"]
        replicas.add(answer.headers[REPLICA])
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert left <= TOKENS_PER_MINUTE - answer.json()["usage"]["prompt_tokens"]
    error = answer.json()["error"]
    assert "tokens per min" in error["message"]
    assert int(answer.headers["retry-after"]) >= 1
    # One more request may have been let in on the last tokens, and the bucket fills meanwhile; not one bucket more.
    assert TOKENS_PER_MINUTE / 2 < used < 1.5 * TOKENS_PER_MINUTE
    # The key is for the base alone, at every engine.
    models = httpx.get(f"{cluster.url}/v1/models", headers={"x-api-key": LIMITED_KEY}).json()
    assert [model["id"] for model in models["data"]] == ["base"]


def test_a_request_is_named_once_and_told_of_once(cluster: Cluster) -> None:
    answer = cluster.post(CHAT, chat("Hi.", max_tokens=1), **{"x-request-id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    # And told of once, by the engine that had it; what was refused at the door, by the door.
    cluster.post(CHAT, chat("Hi."), **{"x-request-id": "mine-2", "x-api-key": "wrong"})

    httpx.get(f"{cluster.url}/version", headers={"x-api-key": KEY, "x-request-id": "mine-3"})

    def told(name: str) -> list[str]:
        lines = cluster.log.read_text().splitlines()
        return [line for line in lines if f"request_id={name}" in line]

    names = ["mine-1", "mine-2", "mine-3"]
    until(lambda: all(map(told, names)), 10, "they are not in the log")
    assert [len(told(name)) for name in names] == [1, 1, 1]
    assert "completion_tokens=1" in told("mine-1")[0]
    assert "Engine" in told("mine-1")[0]
    assert "Gateway" in told("mine-2")[0]


def test_a_published_adapter_is_offered_when_all_engines_have_it(
    cluster: Cluster, embedded_model: Path
) -> None:
    from tests.models import write_manifest, write_peft_adapter

    hidden = cluster.volume / "tone" / ".20261125-000000-aaaa"
    hidden.mkdir(parents=True)
    write_peft_adapter(embedded_model, hidden)
    version = hidden.rename(hidden.with_name(hidden.name[1:]))
    write_manifest(version, weights_digest=None, base_id=embedded_model.name)

    def is_listed() -> bool:
        return "tone" in [entry["id"] for entry in cluster.get("/v1/models").json()["data"]]

    until(is_listed, 60, "the adapter is not listed")
    # From the moment that it is listed, no engine may say that it does not exist.
    answers = from_all(cluster, chat("Say hello.", model="tone", max_tokens=8))
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert cluster.get("/v1/models/tone").status_code == 200


def test_what_an_operator_does_is_done_to_all_engines(cluster: Cluster) -> None:
    def act(what: str) -> int:
        headers = {"x-api-key": ADMIN_KEY}
        return cluster.post(f"/admin/adapters/tone/{what}", {}, **headers).status_code

    asked = chat("Hello.", model="tone", max_tokens=1)
    assert cluster.post("/admin/adapters/tone/unload", {}).status_code == 403
    assert act("unload") == 200
    answers = [cluster.post(CHAT, asked, **{"x-session-id": f"u{n}"}) for n in range(16)]
    assert {answer.status_code for answer in answers} == {404}
    assert act("reload") == 200
    assert "tone" in [entry["id"] for entry in cluster.get("/v1/models").json()["data"]]
    from_all(cluster, asked)


def test_the_metrics_of_all_engines_are_in_one_place(cluster: Cluster) -> None:
    before = cluster.metric("vllm:generation_tokens_total")
    answers = from_all(cluster, chat("Count.", max_tokens=5, ignore_eos=True))
    after = cluster.metric("vllm:generation_tokens_total")
    assert after.keys() == cluster.engines
    for engine in cluster.engines:
        given = sum(answer.headers[REPLICA] == engine for answer in answers)
        assert after[engine] - before[engine] == 5 * given
    waiting = cluster.metric("vllm:num_requests_waiting")
    assert any(name.startswith("gateway-") for name in waiting)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_caller_who_leaves_frees_the_place(cluster: Cluster, is_streamed: bool) -> None:
    def running() -> float:
        return sum(cluster.metric("vllm:num_requests_running").values())

    body = chat("Count to one thousand.", max_tokens=900, ignore_eos=True, stream=is_streamed)
    headers = {"x-api-key": KEY}
    if is_streamed:
        with httpx.stream("POST", cluster.url + CHAT, json=body, headers=headers, timeout=60) as r:
            lines = r.iter_lines()  # kept: without it httpx closes the connection
            next(lines)
            until(lambda: running() == 1, 10, "the engine does not say that it runs")
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(cluster.url + CHAT, json=body, headers=headers, timeout=2)
    until(lambda: running() == 0, 10, "the engine computes for nobody")


def test_a_full_queue_says_when_to_come_back_and_loses_nobody(cluster: Cluster) -> None:
    taken = 2 * (MAX_RUNNING + 1)
    queue = MAX_WAITING + MAX_RUNNING + 1  # the fewest engines there may be: one
    bodies = [
        chat(f"Story {n}.", max_tokens=32, ignore_eos=True, stream=True)
        for n in range(taken + queue + 8)
    ]
    with Load(cluster, bodies) as load:
        pass
    served = [stream for stream in load.streams if stream.status == 200]
    refused = [stream for stream in load.streams if stream.status != 200]
    assert len(served) >= queue
    assert refused
    assert {stream.finish_reason for stream in served} == {"length"}
    assert {stream.status for stream in refused} == {429}
    assert all(int(stream.retry_after) >= 1 for stream in refused)


def test_an_engine_that_hangs_silences_nobody_but_itself(cluster: Cluster) -> None:
    hanging, *_ = cluster.engine_pids()
    os.kill(hanging, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as pool:
            ready, engines = (
                pool.submit(lambda: cluster.get("/ready")),
                pool.submit(lambda: cluster.engines),
            )
        assert ready.result().status_code == 200
        assert len(engines.result()) == 1
    finally:
        os.kill(hanging, signal.SIGCONT)
    until(lambda: len(cluster.engines) == 2, 60, "it does not answer again")


def test_a_killed_engine_fails_its_own_streams_cleanly_and_is_replaced(cluster: Cluster) -> None:
    before = cluster.engines
    # One session of each engine, two streams in each: all of them are being written when the engine dies.
    answers = from_all(cluster, chat("Hello.", max_tokens=1))
    of_engine = {answer.headers[REPLICA]: f"session-{n}" for n, answer in enumerate(answers)}
    sessions = [session for session in of_engine.values() for _ in range(2)]
    bodies = [chat(f"Story {n}.", max_tokens=200, ignore_eos=True) for n in range(len(sessions))]
    with Load(cluster, bodies, sessions) as load:
        until(lambda: load.have_begun, 60, "not all streams have begun")
        assert {stream.replica for stream in load.streams} == before
        os.kill(cluster.engine_pids()[0], signal.SIGKILL)
    failed = [stream for stream in load.streams if stream.error is not None]
    others = [stream for stream in load.streams if stream.error is None]
    (killed,) = {stream.replica for stream in failed}
    assert {stream.replica for stream in others} == before - {killed}
    for stream in failed:
        assert stream.failure is None
        assert stream.is_done
        assert stream.error is not None
        assert stream.error["code"] == "unavailable"
    for stream in others:
        assert stream.finish_reason == "length"
    # Whoever asks in the meantime is answered by the one that is left.
    assert cluster.post(CHAT, chat("Are you there?", max_tokens=2)).status_code == 200
    until(lambda: len(cluster.engines) == 2, 90, "it was not replaced")
    assert killed not in cluster.engines


def test_the_official_client_sees_the_loss_as_an_error_of_the_api(cluster: Cluster) -> None:
    stream = cluster.openai.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "A long story."}],
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    for pid in cluster.engine_pids():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="has failed and is being replaced"):
        list(stream)
    until(lambda: len(cluster.engines) == 2, 120, "they were not replaced")


def test_a_rolling_update_loses_no_stream(cluster: Cluster, embedded_model: Path) -> None:
    before = cluster.engines
    settings = {
        "model": str(embedded_model),
        "adapters": str(cluster.volume),
        "adapter_poll_seconds": 1,
        "max_context": 1024,
        "replicas": 2,
        "threads": 1,
        "max_running": MAX_RUNNING,
        "max_waiting": MAX_WAITING + 1,  # the change
        "drain_seconds": DRAIN_SECONDS,
        "api_keys": f"{KEY},{OTHER_KEY}",
    }
    bodies = [chat(f"Tale number {n}.", max_tokens=300, ignore_eos=True) for n in range(4)]
    command = [str(PYTHON), "-m", "tests.ray_serve.redeploy", cluster.gcs_address(), json.dumps(settings)]  # fmt: skip
    with Load(cluster, bodies) as load:
        until(lambda: load.have_begun, 60, "not all streams have begun")
        with subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "RAY_AUTH_MODE": "token"}
        ) as update:
            # The update goes on around them, and new requests are answered all the while.
            while update.poll() is None:
                answer = cluster.post(CHAT, chat(f"At {time.monotonic()}.", max_tokens=1))
                assert answer.status_code == 200, answer.text
                time.sleep(0.5)
            assert update.returncode == 0
    for stream in load.streams:
        assert stream.error is None
        assert stream.finish_reason == "length"
    assert not cluster.engines & before
    assert len(cluster.engines) == 2


def test_running_answers_end_before_the_server_does(cluster: Cluster) -> None:
    bodies = [chat(f"Fable number {n}.", max_tokens=120, ignore_eos=True) for n in range(2)]
    with Load(cluster, bodies) as load:
        until(lambda: load.have_begun, 60, "not all streams have begun")
        cluster.process.send_signal(signal.SIGTERM)
    assert [stream.finish_reason for stream in load.streams] == ["length"] * 2
    assert cluster.process.wait(DRAIN_SECONDS + 60) == 0
