"""The series of /metrics that tell of connections: open, allowed, closed for want of places."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.api.places import Places


class ConnectionCollector:
    """places: of the public port."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def collect(self) -> Iterable[Metric]:
        places = self._places
        yield GaugeMetricFamily("lorachat_connections", "Open connections.", value=places.open)
        yield GaugeMetricFamily(
            "lorachat_connections_limit",
            "Connections that may ask for anything at the same time.",
            value=places.limit,
        )
        closed = CounterMetricFamily(
            "lorachat_connections_closed",
            "Connections closed for want of places: idle ones, and such as came when all were busy.",
            labels=["reason"],
        )
        closed.add_metric(["idle"], places.closed)
        closed.add_metric(["crowded"], places.cut)
        yield closed
