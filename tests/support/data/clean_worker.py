"""One attempt at a clean stage in a process with a Ray of its own: ``clean_worker SETTINGS.json``.

It prints a line for each shard that is done.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import ray

from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean


def attempt(settings: dict[str, Any]) -> None:
    """Cleans with as many workers as asked for, each of which may add so much private memory, MiB."""
    limit = settings.get("limit_mb", 0) << 20

    def limit_memory() -> None:
        if limit:
            import pipelines.data.read  # noqa: F401 (what a worker imports is no part of the limit)

            own = psutil.Process().memory_info().data
            resource.setrlimit(resource.RLIMIT_DATA, (own + limit, own + limit))

    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others reserve a gigabyte that they do not use
    ray.init(
        address="local",
        num_cpus=settings["workers"],
        object_store_memory=80 << 20,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": limit_memory},
    )
    clean.RECORDS_PER_SHARD = settings["records_per_shard"]
    output = Path(settings["output"])
    output.mkdir(exist_ok=True)
    context = StageContext(
        name="clean",
        settings=settings["what"],
        placement={"data": {"workers": settings["workers"]}},
        output=output,
        progress=lambda done, total, message="": print(f"{done} of {total}, {message}", flush=True),
    )
    clean.run_stage(context)


if __name__ == "__main__":
    attempt(json.loads(Path(sys.argv[1]).read_text()))
