"""Many processes' metrics as one page: each series gets the label `replica`. Does not know what is counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


def merged(pages: Mapping[str, str]) -> bytes:
    """pages: Prometheus' text form by replica. Raises ValueError for another form."""
    families: dict[str, Metric] = {}
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page):
            into = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, LABEL: replica}
                into.add_sample(sample.name, labels, sample.value)
    registry = CollectorRegistry()
    registry.register(_Given(families.values()))
    data: bytes = generate_latest(registry)
    return data


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
