"""The run of a shard pipeline on Ray Data, which is imported when the run begins: that takes seconds."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from pipelines.data.store.shard_pipeline import Run, ShardPipeline, Tasks


def on_ray(workers: int) -> Run:
    """The run on Ray Data, with so many tasks side by side."""

    def run(
        pipeline: ShardPipeline[Any], tasks: Tasks[Any], names: Sequence[str]
    ) -> Generator[tuple[str, bytes]]:
        from pipelines.data.store.ray_data import run_on_ray

        return run_on_ray(pipeline, tasks, names, workers)

    return run
