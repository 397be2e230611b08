"""The state of a store's latest run, and ending it."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from infra import local_ray
from pipelines.cli.headline import headline
from pipelines.cli.session import LatestRun, latest_run
from pipelines.dag.artifact import read_manifest
from pipelines.dag.records import Records
from pipelines.storage.uri import open_folder

TIMEOUT_S = 10.0


def job_prefix(stage: dict[str, Any]) -> str:
    """Start of the ids of a recorded stage's jobs."""
    return f"{stage['name']}-{stage['fingerprint'][:12]}-a"


def look(run: LatestRun) -> dict[str, Any]:
    """Stages, Ray and endpoint of a run. Asks Ray only if it runs, and starts nothing."""
    reachable = run.cluster.is_reachable()
    active = set(run.cluster.active_jobs()) if reachable else set()
    return {
        "recipe": run.recipe,
        "store": str(run.records.store),
        "ray": run.cluster.address() if reachable else None,
        "endpoint": run.endpoint if endpoint_answers(run.endpoint) else None,
        "stages": [_stage(run, stage, active) for stage in run.stages],
    }


def _stage(run: LatestRun, stage: dict[str, Any], active: set[str]) -> dict[str, Any]:
    folder = open_folder(stage["folder"])
    manifest = read_manifest(folder)
    attempts = run.records.latest_attempt(job_prefix(stage))
    job_id = f"{job_prefix(stage)}{attempts}"
    outcome = run.records.outcome(job_id)
    if job_id in active:
        state = "running"
    elif manifest is not None:
        state = "done"
    elif outcome is not None and not outcome.ok:
        state = "failed"
    else:
        state = "interrupted" if attempts else "waiting"
    return {
        "stage": stage["name"],
        "kind": stage["kind"],
        "fingerprint": stage["fingerprint"],
        "state": state,
        "attempts": attempts,
        "headline": headline(manifest["summary"]) if manifest else (outcome.what if outcome else ""),
        "artifact": str(folder) if manifest else None,
    }


def endpoint_answers(url: str) -> bool:
    """Whether the endpoint's health check answers 200."""
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=3.0) as response:
            return response.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def end(store: Path) -> dict[str, Any]:
    """End what runs for a store.

    Returns:
        ``processes``: ids of the local head's processes that were ended. ``jobs``: of a foreign cluster.
    """
    if not store.is_dir():
        return {"processes": [], "jobs": []}
    records = Records(store)
    run = latest_run(store) if records.read_run() is not None else None
    jobs = [] if run is None or run.cluster.is_local else _end_remote(run)
    return {"processes": local_ray.stop(records.session), "jobs": jobs}


def _end_remote(run: LatestRun) -> list[str]:
    prefixes = tuple(job_prefix(stage) for stage in run.stages)
    jobs = [job_id for job_id in run.cluster.active_jobs() if job_id.startswith(prefixes)]
    for job_id in jobs:
        run.cluster.stop(job_id)
    run.cluster.end_serving()
    return jobs
