"""One attempt at a pack stage in a process of its own, to be killed: ``pack_worker.py SETTINGS.json``."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import casa_core.processing.processor  # noqa: F401 (before the workers fork, so that none needs to load it again)
from pipelines.dag.context import StageContext
from pipelines.data.pack import run as pack
from pipelines.data.store.shard_pipeline import ShardPipeline, Tasks, run_here


def attempt(settings: dict[str, Any]) -> None:
    """Packs with as many processes as asked for, in small pieces of work."""
    pack.ROWS_PER_TASK, pack.SEQUENCES_PER_SHARD = 16, 8
    output = Path(settings["output"])
    output.mkdir(exist_ok=True)
    context = StageContext(
        name="pack",
        settings=settings["what"],
        placement={},
        inputs={name: Path(folder) for name, folder in settings["inputs"].items()},
        output=output,
    )
    with multiprocessing.get_context("fork").Pool(settings["workers"]) as pool:

        def run(
            pipeline: ShardPipeline[Any], tasks: Tasks[Any], names: Sequence[str]
        ) -> Generator[tuple[str, bytes]]:
            yield from pool.imap_unordered(_one, [(pipeline, {name: tasks[name]}, [name]) for name in names])

        pack.pack_sources(context, run)


def _one(work: tuple[ShardPipeline[Any], Tasks[Any], Sequence[str]]) -> tuple[str, bytes]:
    (found,) = run_here(*work)
    return found


if __name__ == "__main__":
    attempt(json.loads(Path(sys.argv[1]).read_text()))
