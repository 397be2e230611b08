"""Facts of real clusters: a head alone, and a head with further nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.local_ray import RaySession
from pipelines.cluster.ask import _by_job
from pipelines.cluster.checks import cluster_checks
from pipelines.cluster.facts import MARK

pytestmark = pytest.mark.slow
ALONE = ["unshare", "--net", "--map-root-user"]


def test_a_clusters_own_job_finds_what_is_needed_on_a_head_that_works(ray_head: RaySession, tmp_path: Path):
    found = _by_job(ray_head.address, sys.executable, tmp_path)
    checks = {check.name: check for check in cluster_checks(found, str(tmp_path))}
    [node] = found["nodes"]
    assert node["is_head"]
    assert node["cpus"] == 4
    assert checks["tasks"].level == checks["store"].level == checks["Ray"].level == "ok"
    assert not list((tmp_path / "session").iterdir()), "the files of the check are removed"


def gathered(nodes: int, store: Path, **environment: str) -> dict[str, Any]:
    """Facts of a cluster of so many nodes beside its head."""
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("needs network namespaces, to keep a cluster of several nodes on loopback")
    program = f"ip link set lo up && exec {sys.executable} -m tests.support.cluster.nodes {nodes} {store}"
    ended = subprocess.run(
        [*ALONE, "sh", "-c", program],
        env={
            **os.environ,
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": "/tmp",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    [line] = [line for line in ended.stdout.splitlines() if line.startswith(MARK)] or [ended.stderr]
    return json.loads(line.removeprefix(MARK))


def test_nodes_reach_each_other_see_one_store_and_a_full_disk_is_named(tmp_path: Path):
    found = gathered(2, tmp_path, RAY_local_fs_capacity_threshold="0.01")
    checks = {check.name: check for check in cluster_checks(found, str(tmp_path))}
    assert len(found["nodes"]) == 3
    assert found["gloo"] == ""
    for name in ("nodes", "tasks", "Python", "Ray", "torch", "project", "clocks", "store", "gloo"):
        assert checks[name].level == "ok", checks[name]
    assert checks["disk of Ray"].level == "problem"
    assert "RAY_local_fs_capacity_threshold" in checks["disk of Ray"].remedy


def test_a_head_without_cpus_and_without_workers_is_named_instead_of_waited_for(tmp_path: Path):
    found = gathered(0, tmp_path)
    checks = {check.name: check for check in cluster_checks(found, str(tmp_path))}
    assert checks["tasks"].level == "problem"
    assert "num-cpus: 0" in checks["tasks"].cost
    assert checks["store"].level == "ok", "the head itself works"
