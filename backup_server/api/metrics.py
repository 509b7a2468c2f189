"""Figures in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from backup_server.instruments import PROCESS
from backup_server.services import figures
from backup_server.services.context import Context
from backup_server.services.figure import Figure, Sample


def render(ctx: Context) -> tuple[bytes, str]:
    """Text and media type: the fleet's figures from SQL, and what this process measures."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(figures.collect(ctx)))
    return generate_latest(registry) + generate_latest(PROCESS), CONTENT_TYPE_LATEST


class _Collected(Collector):
    def __init__(self, samples: list[Sample]) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for sample in samples:
            self._samples.setdefault(sample.name, []).append(sample)

    def collect(self) -> Iterator[Metric]:
        for figure in figures.FIGURES:
            found = self._samples.get(figure.name)
            if found:
                yield _family(figure, found)


def _family(figure: Figure, found: list[Sample]) -> Metric:
    kind = GaugeMetricFamily if figure.kind == "gauge" else CounterMetricFamily
    family = kind(figure.name, figure.text, labels=figure.labels)
    for sample in found:
        family.add_metric(sample.labels, sample.value)
    return family
