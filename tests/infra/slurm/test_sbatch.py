"""The Slurm script starts Ray on every node and the run on the first, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "infra" / "slurm" / "train.sbatch"
STAND_INS = {
    "scontrol": "seq --format=node%g 1 20000",
    "srun": 'case "$*" in *hostname*) echo "10.0.0.1 10.1.0.1";; *) printf "%s\\n" "$@" > "$SEEN"; '
    'env > "$SEEN.environment";; esac',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    for name, body in STAND_INS.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SEEN": str(tmp_path / "seen"),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "88",
        "SLURM_GPUS_ON_NODE": "8",
        "RAY_ADDRESS": "http://another-cluster:8265",
    }


def start(slurm: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=60, check=False)


def test_ray_starts_on_all_nodes_and_the_recipe_on_the_head_with_a_worker_for_each_gpu(slurm: dict[str, str]):
    assert start(slurm, "casa-helium1-before", "--set", "where.store=/lustre/my runs").returncode == 0
    seen = Path(slurm["SEEN"]).read_text().splitlines()
    ray, command = seen[: seen.index("--")], seen[seen.index("--") + 1 :]
    assert ray[ray.index("ray") + 1 :][:5] == [
        "symmetric-run",
        "--address",
        "10.0.0.1:6379",
        "--min-nodes",
        "2",
    ]
    assert {"--num-cpus=88", "--num-gpus=8"} <= set(ray)
    assert command[:4] == ["casa", "train", "casa-helium1-before", "--set"]
    assert "where.store=/lustre/my runs" in command
    assert "where.train.workers=16" in command
    assert "where.ray.address=http://127.0.0.1:8265" in command


def test_each_job_has_a_token_of_its_own_and_no_other_clusters_address(slurm: dict[str, str]):
    tokens = set()
    for _ in range(2):
        assert start(slurm, "quickstart").returncode == 0
        lines = Path(f"{slurm['SEEN']}.environment").read_text().splitlines()
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        assert environment["RAY_AUTH_MODE"] == "token"
        assert "RAY_ADDRESS" not in environment
        tokens.add(environment["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)


def test_without_gpus_the_recipe_says_how_many_workers_there_are(slurm: dict[str, str]):
    del slurm["SLURM_GPUS_ON_NODE"]
    assert start(slurm, "quickstart").returncode == 0
    assert "where.train.workers" not in Path(slurm["SEEN"]).read_text()


def test_without_a_recipe_it_says_how_it_is_used(slurm: dict[str, str]):
    done = start(slurm)
    assert done.returncode == 2
    assert "RECIPE" in done.stderr


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed here")
    subprocess.run(["shellcheck", str(SCRIPT)], check=True, timeout=60)
