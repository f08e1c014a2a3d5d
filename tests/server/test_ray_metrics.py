"""Several engines' metrics on one page."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api.metrics import Metrics
from server.ray_serve.exposition import merged
from server.types import EngineStats


def samples(page: bytes) -> dict[tuple[str, str, str], float]:
    return {
        (s.name, s.labels["replica"], s.labels.get("le", "")): s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
    }


def page_of(generation_tokens: int) -> str:
    metrics = Metrics(
        lambda: EngineStats(generation_tokens=generation_tokens), {"kernel": "x"}, {}, lambda: True
    )
    metrics.inter_token.observe(0.002)
    metrics.rejected("server_overloaded", 429)
    return metrics.exposition().decode()


def test_every_series_of_every_engine_is_there_under_its_own_name() -> None:
    pages = {"a": page_of(10), "b": page_of(20)}
    page = merged(pages)
    found = samples(page)
    assert found["vllm:generation_tokens_total", "a", ""] == 10
    assert found["vllm:generation_tokens_total", "b", ""] == 20
    assert found["vllm:inter_token_latency_seconds_bucket", "b", "0.0025"] == 1
    assert found["lorachat_requests_rejected_total", "a", ""] == 1
    assert found["lorachat_engine_info", "a", ""] == 1
    alone = [s for f in text_string_to_metric_families(pages["a"]) for s in f.samples]
    assert len([key for key in found if key[1] == "a"]) == len(
        {(s.name, s.labels.get("le", "")) for s in alone}
    )
    # Types survive, so that Prometheus reads counters as counters; each is told once.
    types = [line for line in page.decode().splitlines() if line.startswith("# TYPE")]
    assert "# TYPE vllm:generation_tokens_total counter" in types
    assert "# TYPE vllm:inter_token_latency_seconds histogram" in types
    assert len(types) == len(set(types))


def test_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        merged({"a": "name not-a-number"})
