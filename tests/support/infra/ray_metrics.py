"""What a Ray exports to Prometheus while it prepares data and trains, read from its own port."""

from __future__ import annotations

import tempfile
import time
import urllib.request
from typing import Any

import ray
from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 60.0
"""For metrics that are sent every few seconds."""


def exported_by(needed: set[str]) -> dict[str, set[str]]:
    """Name of each sample → its labels, until all that is needed was seen or has not come for a minute.

    In this process there is a Ray.
    """
    found: dict[str, set[str]] = {}
    running = [_work_on_data.remote(), _train.remote()]
    deadline = time.monotonic() + WAIT_S
    while needed - found.keys() and time.monotonic() < deadline:
        time.sleep(1.0)
        for name, labels in _scrape().items():
            found.setdefault(name, set()).update(labels)
    for one in running:
        ray.cancel(one, force=True)
    return found


def _scrape() -> dict[str, set[str]]:
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@ray.remote(num_cpus=0)
def _work_on_data() -> None:
    import ray.data

    def slow(batch: Any) -> Any:
        time.sleep(0.5)
        return batch

    ray.data.range(400, override_num_blocks=200).map_batches(slow).materialize()


@ray.remote(num_cpus=0)
def _train() -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    run = RunConfig(name="metrics", storage_path=tempfile.mkdtemp())
    DataParallelTrainer(
        lambda: time.sleep(WAIT_S), scaling_config=ScalingConfig(num_workers=1), run_config=run
    ).fit()
