"""The series of /metrics that tell of adapters: in memory, waited for, refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.adapter_types import AdapterStats


class AdapterCollector:
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
