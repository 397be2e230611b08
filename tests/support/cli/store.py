"""The data stages of a small quickstart, done without Ray: a store that commands can look into."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.cli.shared.run_handle import open_run
from pipelines.dag.context import StageContext
from pipelines.dag.job_main import run_job
from pipelines.dag.records import JobSpec
from pipelines.data.clean.run import clean_source
from pipelines.data.pack.run import pack_sources
from pipelines.data.store.shard_pipeline import run_here

SMALL = (
    "data.sources.vqa.make.train_rows=64",
    "data.sources.vqa.make.test_rows=24",
    "data.sources.live.make.train_clips=4",
    "data.sources.live.make.test_clips=2",
    "data.max_failures=0.5",
)
HERE = {"clean": f"{__name__}:clean_here", "pack": f"{__name__}:pack_here"}


def prepare_small(store: Path) -> None:
    """Fill a store with a small quickstart's corpora, clean artifacts and pack, and record the run."""
    opened = open_run("quickstart", [*SMALL, f"where.store={store}"])
    opened.records.prepare()
    opened.records.write_run("quickstart", {"address": "local"}, "http://127.0.0.1:8000", opened.stages)
    for stage in opened.stages:
        if stage.spec.kind not in ("corpus", *HERE):
            continue
        asked = JobSpec.of(stage, store, attempt=1)
        spec = replace(asked, function=HERE.get(stage.spec.kind, asked.function))
        opened.records.write_spec(spec)
        outcome = run_job(spec)
        assert outcome.ok, outcome
        opened.records.write_outcome(spec.job_id, outcome)


def clean_here(context: StageContext) -> dict[str, Any]:
    """The clean stage in this process."""
    return clean_source(context, run_here)


def pack_here(context: StageContext) -> dict[str, Any]:
    """The pack stage in this process."""
    return pack_sources(context, run_here)
