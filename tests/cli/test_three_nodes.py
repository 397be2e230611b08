"""The quickstart on a cluster of three machines that are lost one after another, submitted from a fourth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import local_ray
from pipelines.dag import artifact
from pipelines.storage.uri import Folder
from tests.support import s3
from tests.support.dag import quickstart
from tests.support.infra.nodes import Machines, machines
from tests.support.paths import ROOT
from tests.support.serve.cluster import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4000)]
SERVED = {"where.serve.host": "0.0.0.0", "where.serve.port": "18243"}
CPUS = 3


class Elsewhere:
    """Someone who submits, and comes back, from a machine beside the cluster."""

    def __init__(self, store: Folder, folder: Path) -> None:
        self.store, self.folder = store, folder
        own = {name: str(folder / name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
        self.environment = {**os.environ, **own, "PYTHONPATH": str(ROOT)}

    def casa(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from pipelines.cli import main; main()", *words],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        return json.loads(self.casa("status", "--json", "--store", str(self.store)))

    def wait(self, seconds: float) -> dict[str, Any]:
        """Wait for the runner's end; what `casa status` says then."""

        def ended() -> dict[str, Any] | None:
            found = self.status()
            return found if found["runner"]["state"] != "running" else None

        return wait_until(ended, seconds, "the run's end")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run on one machine."""
    store = tmp_path_factory.mktemp("undisturbed")
    quickstart.run(store, {"where.serve.port": "18244"})
    local_ray.stop(store / "session")
    return store


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machines, Folder]]:
    """Three machines, and a folder on an S3 server beside them."""
    data = tmp_path_factory.mktemp("s3")
    with machines(3) as nodes, s3.running_server(data, nodes.outside) as server, s3.credentials():
        nodes.environment |= s3.CREDENTIALS
        nodes.start_head(1)
        for node in (1, 2):
            nodes.start_worker(node, CPUS)
        yield nodes, server.folder("three-nodes")


@pytest.fixture(scope="module")
def disturbed(
    cluster: tuple[Machines, Folder], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Folder, dict[str, Any]]:
    """The store of a run that lost a machine in cleaning, one in training, and then its head."""
    nodes, store = cluster
    laptop, desktop = (Elsewhere(store, tmp_path_factory.mktemp(name)) for name in ("laptop", "desktop"))
    settings = quickstart.SMALL | SERVED
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    laptop.casa("submit", "quickstart", "--address", nodes.dashboard, "--store", str(store), *sets)

    wait_until(lambda: "running" in stages(laptop, "clean-vqa"), 300, "cleaning's start")
    time.sleep(3)
    nodes.lose(1)
    time.sleep(2)
    nodes.start_worker(1, CPUS)

    wait_until(lambda: quickstart.steps_done(store) >= 15, 600, "training's step 15")
    trains = next(node for node in (2, 1) if workers_on(nodes, node))
    nodes.lose(trains)
    time.sleep(2)
    nodes.start_worker(trains, CPUS)

    wait_until(lambda: quickstart.steps_done(store) >= 35, 600, "training's step 35")
    for node in (0, 1, 2):  # the others end with their head, only later
        nodes.lose(node)
    assert desktop.status()["runner"]["state"] == "interrupted"
    nodes.start_head(1)  # one of training's two workers is elsewhere
    for node in (1, 2):
        nodes.start_worker(node, CPUS)
    desktop.casa("submit", "--name", "quickstart", "--store", str(store))
    return store, desktop.wait(900)


def stages(asking: Elsewhere, *names: str) -> list[str]:
    """States of stages, once the run has any; it must not have ended."""
    if not (asking.store / "session" / "run.json").exists():
        return []
    status = asking.status()
    assert status["runner"]["state"] == "running", status
    return [stage["state"] for stage in status["stages"] if stage["stage"] in names]


def workers_on(nodes: Machines, node: int) -> list[int]:
    """Process ids of training workers on a machine."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in nodes.pids(node)}
    return [pid for pid, line in lines.items() if "RayTrainWorker" in line]


def test_it_completes_and_its_endpoint_is_where_the_cluster_is(
    cluster: tuple[Machines, Folder], disturbed: tuple[Folder, dict[str, Any]]
):
    _, status = disturbed
    assert status["runner"]["state"] == "done"
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    assert status["endpoint"] == f"http://{cluster[0].address(0)}:18243"
    assert local_ray.answers(f"{status['endpoint']}/healthz", 5.0)


def test_every_artifact_is_that_of_an_undisturbed_run(
    disturbed: tuple[Folder, dict[str, Any]], undisturbed: Path
):
    store, _ = disturbed
    ours, theirs = quickstart.manifests(store), quickstart.manifests(undisturbed)
    assert ours.keys() == theirs.keys()
    for stage, manifest in ours.items():
        assert artifact.verify(store / manifest["kind"] / manifest["fingerprint"]) == []
        if stage != "deploy":
            assert manifest["fingerprint"] == theirs[stage]["fingerprint"], stage
            assert manifest["content_digest"] == theirs[stage]["content_digest"], stage
