"""`casa submit`: the runner is a job of the cluster, found again by name, and goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.local_ray import RaySession
from tests.support.data.corpus import finevision_row, write_finevision
from tests.support.http_servers import VERSION, answering
from tests.support.paths import ROOT
from tests.support.serve.cluster import wait_until

RATIO = "train: {image_video_ratio: [1, 0]}\n"


def casa(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of one small corpus, in a folder of its own."""
    rows = [finevision_row(turns=[(f"What is {number}?", "A number.")]) for number in range(6)]
    write_finevision(tmp_path / "corpus" / "train-00000.parquet", rows)
    path = tmp_path / "mine" / "mine.yaml"
    path.parent.mkdir()
    sources = f"{{vqa: null, live: null, small: {{reader: finevision, path: {tmp_path / 'corpus'}}}}}"
    path.write_text(f"base: quickstart\nname: mine\ndata: {{sources: {sources}}}\n{RATIO}")
    return path


@pytest.mark.slow
def test_a_run_goes_on_without_whoever_submitted_it(recipe: Path, tmp_path: Path, ray_head: RaySession):
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    elsewhere.mkdir()
    asked = ("--do", "prepare")
    submitted = casa(
        recipe.parent, "submit", "mine.yaml", "--address", ray_head.address, "--store", str(store), *asked
    )
    assert "mine was submitted as run-mine-a1." in submitted.stdout
    recipe.unlink()

    again = casa(elsewhere, "submit", "--name", "mine", "--store", str(store), "--json").stdout
    assert json.loads(again)["job_id"] == "run-mine-a1"

    def ended() -> dict[str, Any] | None:
        if not (store / "session" / "run.json").exists():
            return None
        status = json.loads(casa(elsewhere, "status", "--store", str(store), "--json").stdout)
        return status if status["runner"]["state"] != "running" else None

    status = wait_until(ended, 120, "the run's end")
    assert status["runner"] == {"job": "run-mine-a1", "state": "done", "why": ""}
    assert {stage["stage"]: stage["state"] for stage in status["stages"]} == {
        "clean-small": "done",
        "pack": "done",
    }
    printed = casa(elsewhere, "logs", "run", "--store", str(store)).stdout
    assert "pack         done in" in printed

    once_more = casa(elsewhere, "submit", "--store", str(store), "--follow").stdout
    assert "run-mine-a2" in once_more
    assert "already done" in once_more
    assert "started" not in once_more


def test_a_submitted_run_that_fails_says_why_wherever_it_is_asked(
    recipe: Path, tmp_path: Path, ray_head: RaySession
):
    store = tmp_path / "store"
    absent = ("--set", f"data.sources.small.path={tmp_path / 'absent'}")
    where = ("--address", ray_head.address, "--store", str(store))
    followed = casa(recipe.parent, "submit", "mine.yaml", *where, *absent, "--follow", code=1).stdout
    assert f"{tmp_path / 'absent'}" in followed
    outcome = json.loads((store / "jobs" / "run-mine-a1.outcome.json").read_text())
    assert not outcome["ok"]
    assert "Traceback" not in followed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("mine.yaml", "--address", "http://127.0.0.1:9"), "where.store = runs is a folder of this machine"),
        (("mine.yaml", "--name", "a/b"), "cannot be called 'a/b'"),
        (("--store", "here"), "Nothing was submitted there"),
        (("--name", "yours", "--store", "here"), "No run called yours"),
        (("--set", "train.steps=9"), "`--set` needs a recipe"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_anything_starts(
    recipe: Path, words: tuple[str, ...], says: str
):
    assert says in casa(recipe.parent, "submit", *words, code=2).stderr


def test_a_cluster_that_wants_a_token_says_how_to_give_it(recipe: Path, tmp_path: Path):
    with answering(lambda method, path: (200, VERSION) if "version" in path else (403, "no")) as (url, _):
        words = ("mine.yaml", "--address", url, "--store", str(tmp_path / "store"))
        assert "refused its token" in casa(recipe.parent, "submit", *words, code=1).stderr
