"""The quickstart at a size for tests: every stage but the endpoint, through the ``casa`` command."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from infra import local_ray
from infra.processes import session_processes
from pipelines.storage.uri import Folder
from pipelines.train.metrics import read_lines

SMALL = {
    "data.sources.vqa.make.train_rows": "1200",
    "data.sources.vqa.make.test_rows": "72",
    "data.sources.live.make.train_clips": "60",
    "data.sources.live.make.test_clips": "4",
    "data.max_failures": "0.1",
    "train.steps": "60",
    "train.warmup_steps": "5",
    "train.decay_steps": "20",
    "train.checkpoint_every": "10",
    "evaluate.baselines": "[]",
}


def command(store: Folder, verb: str, settings: dict[str, str] | None = None) -> list[str]:
    """``casa <verb> quickstart`` at test size on ``store``."""
    values = SMALL | {"where.store": str(store)} | (settings or {})
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return [sys.executable, "-c", "from pipelines.cli import main; main()", verb, "quickstart", *sets]


def run(store: Folder, settings: dict[str, str] | None = None) -> str:
    """Runs to the end; the output."""
    done = subprocess.run(command(store, "run", settings), capture_output=True, text=True, timeout=2000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def casa(*words: str) -> str:
    """The output of a ``casa`` command."""
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *words],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plan(store: Path, settings: dict[str, str] | None = None) -> dict[str, bool]:
    """Which stages are cached, by name."""
    done = subprocess.run(
        [*command(store, "plan", settings), "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {stage["stage"]: stage["status"] == "done" for stage in json.loads(done.stdout)}


def kill_during_training(
    store: Folder,
    after_step: int,
    victims: Callable[[int], list[int]],
    settings: dict[str, str] | None = None,
) -> int:
    """Starts a run, SIGKILLs some of its processes once a step is done; returns the runner's exit code.

    Args:
        store: A store without a trained model.
        after_step: The step to wait for.
        victims: From the runner's process id to the ids to kill.
        settings: Beyond ``SMALL``.
    """
    quiet = subprocess.DEVNULL
    runner = subprocess.Popen(command(store, "run", settings), stdout=quiet, stderr=quiet)
    try:
        deadline = time.monotonic() + 1200
        while steps_done(store) < after_step:
            assert runner.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "training did not get there"
            time.sleep(0.05)
        for pid in victims(runner.pid):
            psutil.Process(pid).send_signal(signal.SIGKILL)
        return runner.wait(timeout=1200)
    finally:
        if runner.poll() is None:
            runner.kill()


def steps_done(store: Folder) -> int:
    """Steps in the metrics of the training that runs or ran."""
    runs = list((store / "train").iterdir()) if (store / "train").is_dir() else []
    return max((len(read_lines(run / "metrics.jsonl")) for run in runs), default=0)


def training_workers(session_folder: Path) -> list[int]:
    """Process ids of the training workers of a store's Ray head."""
    session = local_ray.read_session(session_folder)
    assert session is not None
    found = []
    for process in session_processes(session.session_id, Path(session.folder)):
        with contextlib.suppress(psutil.NoSuchProcess):  # another of the session's, which has just ended
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    assert found, "the training has workers"
    return found


def manifests(store: Folder) -> dict[str, dict[str, Any]]:
    """Manifest of each finished stage, by name."""
    paths = [path for path in store.rglob("manifest.json") if path.parent.parent.parent == store]
    found = [json.loads(path.read_text()) for path in paths]
    return {manifest["provenance"]["stage"]: manifest for manifest in found}
