"""vLLM's dashboards, gateways and autoscalers find here what they look for there."""

from __future__ import annotations

import re
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.api_fakes import FakeEngine, FakeModel
from tests.server.api_live import Running, running, until

# Of vLLM's documentation of its metrics: name without _total, and type.
VLLM = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "cache_config_info": "gauge",
    "lora_requests_info": "gauge",
    "prompt_tokens": "counter",
    "prompt_tokens_cached": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "num_preemptions": "counter",
    "spec_decode_num_draft_tokens": "counter",
    "spec_decode_num_accepted_tokens": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "request_time_per_output_token_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
    "request_prefill_kv_computed_tokens": "histogram",
    "request_max_num_generation_tokens": "histogram",
    "request_params_n": "histogram",
    "request_params_max_tokens": "histogram",
}


def samples(server: Running, name: str) -> list[tuple[dict[str, str], float]]:
    text = server.http.get("/metrics").text
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def test_vllms_metrics_are_there_with_its_names_types_and_labels() -> None:
    with running() as server:
        server.chat("abc")
        families = {
            family.name: family
            for family in text_string_to_metric_families(server.http.get("/metrics").text)
            if family.name.startswith("vllm:")
        }
    assert {name.removeprefix("vllm:"): f.type for name, f in families.items()} == VLLM
    for name, family in families.items():
        if name.endswith("_info"):
            continue
        for sample in family.samples:
            assert sample.labels["model_name"] == "base", name
            assert sample.labels["engine"] == "0"


def test_made_up_methods_make_no_series_of_their_own() -> None:
    with running(api_keys=["one"]) as server:
        for number in range(20):
            for path in ("/health", "/v1/models", "/nowhere"):  # open, refused for want of a key
                server.http.request(f"FOO{number}", path)
        text = server.http.get("/metrics", headers={"authorization": "Bearer one"}).text
        methods = set(re.findall(r'http_requests_total{.*method="(.*?)"', text))
    assert methods == {"_OTHER"}


def test_phases_of_a_request_add_up() -> None:
    engine = FakeEngine(step_seconds=0.005, cached_tokens=1)
    with running(engine) as server:
        server.chat("abcdef")
        total = {
            name: server.metric(f"vllm:{name}_sum") for name in VLLM if VLLM[name] == "histogram"
        }
    waited, prompt, answer = (
        total[f"request_{name}_time_seconds"] for name in ("queue", "prefill", "decode")
    )
    assert total["request_inference_time_seconds"] == pytest.approx(prompt + answer)
    assert waited + prompt + answer <= total["e2e_request_latency_seconds"]
    assert total["time_to_first_token_seconds"] >= waited + prompt
    assert total["request_time_per_output_token_seconds"] == pytest.approx(answer / 6)
    assert total["request_prefill_kv_computed_tokens"] == 5
    assert total["request_max_num_generation_tokens"] == 7


def test_waiting_is_not_counted_as_computing() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    with running(engine) as server:
        asking = threading.Thread(target=lambda: server.chat("x"))
        asking.start()
        until(lambda: engine.running == 1)
        threading.Event().wait(0.2)
        engine.gate.set()
        asking.join()
        assert server.metric("vllm:request_queue_time_seconds_sum") >= 0.2
        assert server.metric("vllm:request_prefill_time_seconds_sum") < 0.2


def test_the_adapters_that_work_and_wait_are_told_to_gateways() -> None:
    engine = FakeEngine(script=lambda *_: "x" * 100, step_seconds=0.01)
    with running(engine) as server:
        models = cast(Any, server.service.catalogue).models
        for name in ("smalltalk", "helpdesk"):
            handle = SimpleNamespace(key=f"{name}@1", digest="sha256:1")
            models[name] = FakeModel(id=f"{name}@1", adapter=cast(None, handle))
        ((labels, first),) = samples(server, "vllm:lora_requests_info")
        assert (labels["running_lora_adapters"], labels["waiting_lora_adapters"]) == ("", "")

        def lora() -> dict[str, str]:
            return samples(server, "vllm:lora_requests_info")[0][0]

        asking = [
            threading.Thread(target=lambda n=name: server.chat("x", model=n))
            for name in ("smalltalk", "helpdesk", "base")
        ]
        engine.gate.clear()
        for thread in asking:
            thread.start()
        until(lambda: lora()["waiting_lora_adapters"] == "helpdesk,smalltalk")
        engine.gate.set()
        until(lambda: lora()["running_lora_adapters"] == "helpdesk,smalltalk")
        assert lora()["waiting_lora_adapters"] == ""
        for thread in asking:
            thread.join()
        ((labels, last),) = samples(server, "vllm:lora_requests_info")
        assert (labels["running_lora_adapters"], labels["waiting_lora_adapters"]) == ("", "")
        assert last >= first > 1e9


def test_a_server_that_cannot_answer_says_so() -> None:
    with running(loaded=False) as server:
        assert samples(server, "lorachat_ready") == [({}, 0.0)]
    engine = FakeEngine()
    with running(engine) as server:
        assert samples(server, "lorachat_ready") == [({}, 1.0)]
        engine.failure = RuntimeError()
        assert samples(server, "lorachat_ready") == [({}, 0.0)]


def test_tokens_are_counted_by_model_and_by_key_and_no_key_is_shown() -> None:
    with running(FakeEngine(cached_tokens=1), api_keys=["first-key", "second-key"]) as server:
        server.http.headers["authorization"] = "Bearer first-key"
        server.chat("abc")
        server.chat("abc", temperature=9)
        text = server.http.get("/metrics").text
        by_model = {labels["kind"]: v for labels, v in samples(server, "lorachat_tokens_total")}
        by_key = samples(server, "lorachat_key_tokens_total")
        statuses = {
            labels["status"]: v for labels, v in samples(server, "lorachat_key_requests_total")
        }
    assert by_model == {"prompt": 3, "cached": 1, "completion": 4}
    assert {labels["kind"]: v for labels, v in by_key} == by_model
    assert len({labels["key"] for labels, _ in by_key}) == 1
    assert statuses == {"200": 1, "400": 1}
    assert "first-key" not in text


def test_buckets_reach_as_far_as_a_cpu_needs() -> None:
    with running() as server:
        server.chat("a")
        text = server.http.get("/metrics").text
    ends = re.findall(r'vllm:time_to_first_token_seconds_bucket\{.*le="([^"]+)"', text)
    assert {"0.05", "20.0", "160.0", "640.0"} <= set(ends)
