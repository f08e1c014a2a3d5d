"""What /metrics says, in Prometheus' form. vLLM's names where it has one, so that its dashboards fit.

Label values are bounded: HTTP's own methods, models that are served, names of API keys, outcomes, and the first names
of unknown fields.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPMethod
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from server.adapter_types import AdapterStats
from server.api.places import Places
from server.api.scrape import VLLM_LABELS, EngineCollector, ModelCollector
from server.api.scrape_adapters import AdapterCollector
from server.api.scrape_connections import ConnectionCollector
from server.types import EngineStats, Finished, Usage

if TYPE_CHECKING:
    from server.api.run import Run

log = logging.getLogger("lorachat.api")

# vLLM's, extended for a CPU: a long prompt may take minutes.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 320, 640, 1280)  # fmt: skip
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
CHOICES = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_UNKNOWN_NAMES = 64
# Anyone may make methods up; OpenTelemetry's word for those.
OTHER_METHOD = "_OTHER"
_METHODS = frozenset(HTTPMethod)

disable_created_metrics()  # one series more per series, of no use to anyone who has a start time


class Metrics:
    """stats: the engine's counters now, None while there is no engine. info: labels of the engine. sizes: in bytes."""

    def __init__(
        self,
        stats: Callable[[], EngineStats | None],
        info: Mapping[str, str],
        sizes: Mapping[str, int],
        is_ready: Callable[[], bool],
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._unknown: set[str] = set()
        self._open: dict[int, Run] = {}  # by id(): what is waiting or running

        def histogram(name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(
                f"vllm:{name}", help_, list(VLLM_LABELS), buckets=buckets, registry=registry
            )
            return family.labels(**VLLM_LABELS)

        def counter(name: str, help_: str, *labels: str) -> Counter:
            return Counter(name, help_, labels, registry=registry)

        self.inter_token = histogram(
            "inter_token_latency_seconds", "Time between two tokens of a request.", TOKEN_SECONDS
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "From the request to its first token.", SECONDS
        )
        self._latency = histogram(
            "e2e_request_latency_seconds", "From the request to its end.", SECONDS
        )
        self._queue = histogram(
            "request_queue_time_seconds",
            "From acceptance to the first step: spent waiting.",
            SECONDS,
        )
        self._inference = histogram(
            "request_inference_time_seconds", "From the first step to the last token.", SECONDS
        )
        self._prefill = histogram(
            "request_prefill_time_seconds",
            "From the first step to the first token: the prompt.",
            SECONDS,
        )
        self._decode = histogram(
            "request_decode_time_seconds", "From the first token to the last.", SECONDS
        )
        self._per_token = histogram(
            "request_time_per_output_token_seconds",
            "Of a request, the mean time between two of its tokens.",
            TOKEN_SECONDS,
        )
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._computed = histogram(
            "request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that were not found in the prefix cache.",
            TOKENS,
        )
        self._generated = histogram(
            "request_generation_tokens", "Tokens drawn for a request.", TOKENS
        )
        self._max_tokens = histogram(
            "request_params_max_tokens", "The limit a request came with.", TOKENS
        )
        self._max_generated = histogram(
            "request_max_num_generation_tokens", "The longest choice of a request.", TOKENS
        )
        self._n = histogram("request_params_n", "Choices of a request.", CHOICES)
        self._success = counter(
            "vllm:request_success",
            "Choices that ended, by reason.",
            *VLLM_LABELS,
            "finished_reason",
        )
        self._requests = counter(
            "lorachat_requests",
            "Requests that the engine took, by model and outcome.",
            "model",
            "outcome",
        )
        self._tokens = counter(
            "lorachat_tokens",
            "Tokens by model and kind: prompt, cached (a part of prompt) and completion.",
            "model",
            "kind",
        )
        self._key_requests = counter(
            "lorachat_key_requests",
            "Requests for an answer, by name of the API key and status.",
            "key",
            "status",
        )
        self._key_tokens = counter(
            "lorachat_key_tokens",
            "Tokens by name of the API key and kind: prompt, cached (a part of prompt) and completion.",
            "key",
            "kind",
        )
        self._cancelled = counter(
            "lorachat_requests_cancelled",
            "Requests whose caller left, by what was being done: queue, prompt or decode.",
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
        registry.register(
            EngineCollector(stats, info, sizes, is_ready, lambda: list(self._open.values()))
        )

    def exposition(self) -> bytes:
        data: bytes = generate_latest(self._registry)
        return data

    def add_models(self, models: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        """models: (name, digest, parent) of every model that is served, asked at each scrape."""
        self._registry.register(ModelCollector(models))

    def add_adapters(self, stats: Callable[[], AdapterStats | None]) -> None:
        """stats: of the adapters at each scrape, None while there are none."""
        self._registry.register(AdapterCollector(stats))

    def add_connections(self, places: Places) -> None:
        self._registry.register(ConnectionCollector(places))

    def submitted(self, run: Run) -> None:
        request = run.request
        self._open[id(run)] = run
        self._n.observe(request.n)
        self._max_tokens.observe(request.params.max_tokens)
        self._prompt.observe(len(request.prompt_ids))

    def finished(self, event: Finished) -> None:
        self._success.labels(**VLLM_LABELS, finished_reason=event.reason.value).inc()

    def ended(self, run: Run) -> None:
        """Once for each run. Its phases are counted as far as it came."""
        self._open.pop(id(run), None)
        now, clock, usage = time.perf_counter(), run.clock, run.usage
        self._requests.labels(run.model, run.outcome).inc()
        _add_tokens(self._tokens, run.model, usage)
        self._generated.observe(usage.completion_tokens)
        self._max_generated.observe(max(run.tokens_of_choice.values(), default=0))
        self._latency.observe(now - clock.begun)
        if run.outcome == "cancelled":
            self._cancelled.labels(run.phase).inc()
        begun = run.generation.begun
        self._queue.observe((now if begun is None else begun) - clock.submitted)
        if begun is None or clock.first_token is None:
            return
        last = clock.last_token or clock.first_token
        self._first_token.observe(clock.first_token - clock.begun)
        self._prefill.observe(clock.first_token - begun)
        self._computed.observe(usage.prompt_tokens - usage.cached_tokens)
        self._decode.observe(last - clock.first_token)
        self._inference.observe(last - begun)
        if usage.completion_tokens > run.request.n:
            drawn_later = usage.completion_tokens / run.request.n - 1
            self._per_token.observe((last - clock.first_token) / drawn_later)

    def answered(self, key: str, status: int, runs: Iterable[Run]) -> None:
        """A request for an answer has ended. key: the name of its API key, empty where none is asked for."""
        if not key:
            return
        self._key_requests.labels(key, str(status)).inc()
        for run in runs:
            _add_tokens(self._key_tokens, key, run.usage)

    def rejected(self, code: str | None, status: int) -> None:
        self._rejected.labels(code or "invalid_request", str(status)).inc()

    def responded(self, method: str, handler: str, status: int) -> None:
        if method not in _METHODS:
            method = OTHER_METHOD
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


def _add_tokens(counter: Counter, label: str, usage: Usage) -> None:
    counter.labels(label, "prompt").inc(usage.prompt_tokens)
    counter.labels(label, "cached").inc(usage.cached_tokens)
    counter.labels(label, "completion").inc(usage.completion_tokens)
