"""What /metrics says, in Prometheus' form. vLLM's names where it has one, so that its dashboards fit.

Label values are bounded: models that are served, outcomes, and the first names of unknown fields.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from server.adapter_types import AdapterStats
from server.types import EngineStats, Finished, GenerationRequest, Usage

if TYPE_CHECKING:
    from server.api.run import Clock

log = logging.getLogger("lorachat.api")

# vLLM's, extended for a CPU: a long prompt may take minutes.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
CHOICES = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_UNKNOWN_NAMES = 64

disable_created_metrics()  # one series more per series, of no use to anyone who has a start time


class Metrics:
    """stats: the engine's counters now, None while there is no engine. info: labels of the engine, fixed at start."""

    def __init__(self, stats: Callable[[], EngineStats | None], info: Mapping[str, str]) -> None:
        self._registry = registry = CollectorRegistry()
        self._unknown: set[str] = set()

        def histogram(name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help_, buckets=buckets, registry=registry)

        def counter(name: str, help_: str, *labels: str) -> Counter:
            return Counter(name, help_, labels, registry=registry)

        self.inter_token = histogram(
            "vllm:inter_token_latency_seconds",
            "Time between two tokens of a request.",
            TOKEN_SECONDS,
        )
        self._first_token = histogram(
            "vllm:time_to_first_token_seconds", "From the request to its first token.", SECONDS
        )
        self._latency = histogram(
            "vllm:e2e_request_latency_seconds", "From the request to its end.", SECONDS
        )
        self._prefill = histogram(
            "vllm:request_prefill_time_seconds",
            "From acceptance to the first token: waiting and the prompt.",
            SECONDS,
        )
        self._decode = histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last.", SECONDS
        )
        self._prompt = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS
        )
        self._generated = histogram(
            "vllm:request_generation_tokens", "Tokens drawn for a request.", TOKENS
        )
        self._max_tokens = histogram(
            "vllm:request_params_max_tokens", "The limit a request came with.", TOKENS
        )
        self._n = histogram("vllm:request_params_n", "Choices of a request.", CHOICES)
        self._success = counter(
            "vllm:request_success", "Choices that ended, by reason.", "finished_reason"
        )
        self._requests = counter(
            "lorachat_requests",
            "Requests that the engine took, by model and outcome.",
            "model",
            "outcome",
        )
        self._cancelled = counter(
            "lorachat_requests_cancelled",
            "Requests whose caller left, by what was being done.",
            "phase",
        )
        self._rejected = counter(
            "lorachat_requests_rejected",
            "Requests that were refused, by error code and status.",
            "code",
            "status",
        )
        self._unknown_fields = counter(
            "lorachat_unknown_fields", "Fields of requests that this server does not know.", "name"
        )
        self._http = counter("http_requests", "HTTP requests.", "method", "handler", "status")
        ProcessCollector(registry=registry)  # memory, processor time, open files, start
        registry.register(_EngineCollector(stats, info))

    def exposition(self) -> bytes:
        data: bytes = generate_latest(self._registry)
        return data

    def add_models(self, models: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        """models: (name, digest, parent) of every model that is served, asked at each scrape."""
        self._registry.register(_ModelCollector(models))

    def add_adapters(self, stats: Callable[[], AdapterStats | None]) -> None:
        """stats: of the adapters at each scrape, None while there are none."""
        self._registry.register(_AdapterCollector(stats))

    def submitted(self, request: GenerationRequest) -> None:
        self._n.observe(request.n)
        self._max_tokens.observe(request.params.max_tokens)
        self._prompt.observe(len(request.prompt_ids))

    def finished(self, event: Finished) -> None:
        self._success.labels(event.reason.value).inc()

    def ended(self, request: GenerationRequest, outcome: str, clock: Clock, usage: Usage) -> None:
        now = time.perf_counter()
        self._requests.labels(request.model.id, outcome).inc()
        self._generated.observe(usage.completion_tokens)
        self._latency.observe(now - clock.begun)
        if outcome == "cancelled":
            self._cancelled.labels("prompt" if clock.first_token is None else "decode").inc()
        if clock.first_token is not None:
            self._first_token.observe(clock.first_token - clock.begun)
            self._prefill.observe(clock.first_token - clock.submitted)
            self._decode.observe((clock.last_token or clock.first_token) - clock.first_token)

    def rejected(self, code: str | None, status: int) -> None:
        self._rejected.labels(code or "invalid_request", str(status)).inc()

    def responded(self, method: str, handler: str, status: int) -> None:
        self._http.labels(method, handler, str(status)).inc()

    def unknown_fields(self, names: Iterable[str]) -> None:
        """Count fields that are ignored; log each name once. Names are callers' words, so their number is bounded."""
        for name in names:
            label = name[:64]
            if label not in self._unknown:
                if len(self._unknown) >= MAX_UNKNOWN_NAMES:
                    label = "(others)"
                else:
                    self._unknown.add(label)
                    log.warning("unknown field %r in a request: it is ignored", label)
            self._unknown_fields.labels(label).inc()


class _EngineCollector:
    def __init__(self, stats: Callable[[], EngineStats | None], info: Mapping[str, str]) -> None:
        self._stats = stats
        self._info = info

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily(
            "lorachat_engine", "What computes, and with which numbers.", value=dict(self._info)
        )
        stats = self._stats()
        if stats is None:
            return
        blocks = max(stats.blocks_total, 1)
        for name, help_, value in (
            ("vllm:num_requests_running", "Sequences being computed.", stats.running),
            ("vllm:num_requests_waiting", "Sequences that wait.", stats.waiting),
            ("vllm:kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1.", stats.blocks_used / blocks),
            ("lorachat_kv_blocks", "KV blocks there are.", stats.blocks_total),
            ("lorachat_kv_blocks_used", "KV blocks that sequences hold.", stats.blocks_used),
            ("lorachat_kv_blocks_cached", "KV blocks that only the prefix cache holds.", stats.blocks_cached),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, help_, value=value)
        for name, help_, value in (
            ("vllm:prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens drawn.", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries),
            ("vllm:prefix_cache_hits", "Of these, found.", stats.prefix_hits),
            ("vllm:spec_decode_num_draft_tokens", "Tokens guessed before they were drawn.", stats.drafted),
            ("vllm:spec_decode_num_accepted_tokens", "Of these, right.", stats.drafts_accepted),
            ("vllm:num_preemptions", "Sequences put back for want of KV blocks.", stats.preemptions),
            ("lorachat_steps", "Forward passes.", stats.steps),
        ):  # fmt: skip
            yield CounterMetricFamily(name, help_, value=value)


class _ModelCollector:
    def __init__(self, models: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "lorachat_model_info", "Models that are served.", labels=("name", "digest", "parent")
        )
        for labels in self._models():
            family.add_metric(labels, 1)
        yield family


class _AdapterCollector:
    """reason: the check that a version fails, one of a handful of words."""

    def __init__(self, stats: Callable[[], AdapterStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        if stats is None:
            return
        refused = GaugeMetricFamily(
            "lorachat_adapters_refused", "Versions that are not served now.", labels=("reason",)
        )
        for reason in sorted(stats.refusals.keys() | stats.refused.keys()):
            refused.add_metric((reason,), stats.refused.get(reason, 0))
        yield refused
        refusals = CounterMetricFamily(
            "lorachat_adapter_refusals", "Versions that failed a check.", labels=("reason",)
        )
        for reason, count in sorted(stats.refusals.items()):
            refusals.add_metric((reason,), count)
        yield refusals
        for name, help_, value in (
            ("lorachat_adapters_in_memory", "Adapter versions in memory.", stats.resident),
            ("lorachat_adapter_memory_bytes", "Memory that adapters take.", stats.bytes_used),
            ("lorachat_adapter_memory_limit_bytes", "Memory that adapters may take.", stats.bytes_limit),
            ("lorachat_adapter_requests_waiting", "Requests that wait for an adapter.", stats.waiting),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, help_, value=value)
        yield CounterMetricFamily(
            "lorachat_adapter_loads", "Times an adapter was brought into memory.", value=stats.loads
        )
        yield CounterMetricFamily(
            "lorachat_adapter_evictions", "Times one left for another.", value=stats.evictions
        )
