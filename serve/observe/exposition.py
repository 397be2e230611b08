"""Prometheus's text format: written from metric families, and merged from the texts of several processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PROCESS = "process"
"""Label that :func:`merged` adds."""


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def text_of(families: Iterable[Metric]) -> str:
    """Metric families in the text format; the times of creation that the client library adds are left out."""
    kept: dict[str, Metric] = {}
    for family in families:
        own = kept.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        own.samples += [sample for sample in family.samples if not sample.name.endswith("_created")]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(kept.values()))
    return generate_latest(registry).decode()


def merged(texts: Mapping[str, str]) -> str:
    """One text of those of several processes: every sample gets its process's name as label ``process``.

    Args:
        texts: The process's name → its text, as of :func:`text_of`.
    """
    return text_of(
        _labelled(family, process)
        for process, text in texts.items()
        for family in text_string_to_metric_families(text)
    )


def _labelled(family: Metric, process: str) -> Metric:
    own = Metric(family.name, family.documentation, family.type)
    own.samples = [sample._replace(labels={**sample.labels, PROCESS: process}) for sample in family.samples]
    return own
