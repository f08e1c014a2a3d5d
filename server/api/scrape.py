"""The series of /metrics that are read off the server at each scrape: the engine's state, and what is served.

A scrape runs in a thread of its own, beside the event loop: it only reads, and copies what may change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from server.types import EngineStats
from server.version import VERSION

if TYPE_CHECKING:
    from server.api.run import Run

# vLLM's dashboards select by these two. It gives every series the served name of its base; ours is `base`.
VLLM_LABELS = {"model_name": "base", "engine": "0"}

SIZES = {
    "weight": "Memory that the base's weights take.",
    "step": "Weights that each step reads, however many tokens it computes.",
    "memory_limit": "Memory that this process may use: the container's limit, or the machine's.",
}


class EngineCollector:
    """stats: None while there is no engine. runs: a copy of what waits or runs now."""

    def __init__(
        self,
        stats: Callable[[], EngineStats | None],
        info: Mapping[str, str],
        sizes: Mapping[str, int],
        is_ready: Callable[[], bool],
        runs: Callable[[], list[Run]],
    ) -> None:
        self._stats = stats
        self._info = info
        self._sizes = sizes
        self._is_ready = is_ready
        self._runs = runs

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily(
            "lorachat_build", "Which software this is.", value={"version": VERSION}
        )
        yield InfoMetricFamily(
            "lorachat_engine", "What computes, and with which numbers.", value=dict(self._info)
        )
        stats = self._stats()
        yield GaugeMetricFamily(
            "lorachat_ready",
            "Whether a chat would be answered: 1, or 0 while loading and after a failure.",
            value=int(self._is_ready()),
        )
        for name, size in self._sizes.items():
            yield GaugeMetricFamily(f"lorachat_{name}_bytes", SIZES[name], value=size)
        if stats is None:
            return
        blocks = max(stats.blocks_total, 1)
        for name, help_, value in (
            ("vllm:num_requests_running", "Sequences being computed.", stats.running),
            ("vllm:num_requests_waiting", "Sequences that wait.", stats.waiting),
            ("vllm:kv_cache_usage_perc", "Part of the KV blocks in use, 0 to 1.", stats.blocks_used / blocks),
            ("lorachat_queue_tokens", "Prompt tokens that wait to be computed.", stats.waiting_tokens),
            ("lorachat_kv_blocks", "KV blocks there are.", stats.blocks_total),
            ("lorachat_kv_blocks_used", "KV blocks that sequences hold.", stats.blocks_used),
            ("lorachat_kv_blocks_cached", "KV blocks that only the prefix cache holds.", stats.blocks_cached),
        ):  # fmt: skip
            yield _labelled(GaugeMetricFamily, name, help_, value)
        for name, help_, value in (
            ("vllm:prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens),
            ("vllm:prompt_tokens_cached", "Of these, found in the prefix cache.", stats.prefix_hits),
            ("vllm:generation_tokens", "Tokens drawn.", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries),
            ("vllm:prefix_cache_hits", "Of these, found.", stats.prefix_hits),
            ("vllm:spec_decode_num_draft_tokens", "Tokens guessed before they were drawn.", stats.drafted),
            ("vllm:spec_decode_num_accepted_tokens", "Of these, right.", stats.drafts_accepted),
            ("vllm:num_preemptions", "Sequences put back for want of KV blocks.", stats.preemptions),
            ("lorachat_steps", "Forward passes.", stats.steps),
        ):  # fmt: skip
            yield _labelled(CounterMetricFamily, name, help_, value)
        yield self._cache_config(stats)
        yield self._lora_requests()

    def _cache_config(self, stats: EngineStats) -> Metric:
        """vLLM's words for the KV cache; gateways read its size from them."""
        labels = {
            "block_size": self._info.get("block_size", ""),
            "num_gpu_blocks": str(stats.blocks_total),  # vLLM's name, on a CPU too
            "cache_dtype": "float32",
            "enable_prefix_caching": "True",
            "engine": VLLM_LABELS["engine"],
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the KV cache.", labels=list(labels)
        )
        family.add_metric(list(labels.values()), 1)
        return family

    def _lora_requests(self) -> Metric:
        """Which adapters work now: gateways send a request where its adapter already is. The value is the time."""
        running: set[str] = set()
        waiting: set[str] = set()
        for run in self._runs():
            if run.request.model.adapter is not None:
                name = run.model.partition("@")[0]  # callers and gateways route by NAME
                (waiting if run.generation.begun is None else running).add(name)
        labels = {
            "max_lora": self._info.get("max_running", ""),  # every running answer may have its own
            "waiting_lora_adapters": ",".join(sorted(waiting)),
            "running_lora_adapters": ",".join(sorted(running)),
        }
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "Adapters of the requests in work.", labels=list(labels)
        )
        family.add_metric(list(labels.values()), time.time())
        return family


class ModelCollector:
    """models: (name, digest, parent) of every model that is served."""

    def __init__(self, models: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "lorachat_model_info", "Models that are served.", labels=("name", "digest", "parent")
        )
        versions = 0
        for labels in self._models():
            family.add_metric(labels, 1)
            versions += "@" in labels[0]
        yield family
        yield GaugeMetricFamily(
            "lorachat_adapters", "Adapter versions that are served.", value=versions
        )


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, help_: str, value: float
) -> Metric:
    """One series; vLLM's with the labels that its dashboards select by."""
    labels = VLLM_LABELS if name.startswith("vllm:") else {}
    family = kind(name, help_, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
