"""A quickstart of test size, made again from its manifests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import local_ray
from tests.support.dag import quickstart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
DATA = {"corpus-vqa", "corpus-live", "clean-vqa", "clean-live", "pack"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run, whose Ray has ended."""
    folder = tmp_path_factory.mktemp("run")
    quickstart.run(folder, {"where.serve.port": "18241", "train.steps": "30", "train.decay_steps": "10"})
    local_ray.stop(folder / "session")
    return folder


def reproduce(store: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The command's exit code, and its result."""
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "reproduce"]
    done = subprocess.run(
        [*command, *words, "--store", str(store), "--json"], capture_output=True, text=True, timeout=900
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert lines[-1]["event"] == "result", done.stdout + done.stderr
    return done.returncode, lines[-1]


def test_a_run_is_made_again_with_equal_data_and_metrics_within_tolerance(store: Path, tmp_path: Path):
    code, result = reproduce(store, "--into", str(tmp_path / "again"))
    assert (code, result["reproduced"]) == (0, True)
    stages = {one["stage"]: one for one in result["stages"]}
    assert stages.keys() == DATA | {"train", "evaluate", "report"}
    first, second = quickstart.manifests(store), quickstart.manifests(tmp_path / "again")
    for name in DATA:
        assert first[name]["content_digest"] == second[name]["content_digest"], name
        assert not stages[name]["differing"]
    assert {metric["kind"] for metric in stages["train"]["metrics"]} == {"loss", "count"}
    assert stages["evaluate"]["metrics"], "its scores are compared"
    assert local_ray.find(tmp_path / "again" / "session") is None, "its Ray has ended"


def test_an_artifact_that_says_something_else_than_its_settings_give_is_not_reproduced(store: Path):
    path = next(store.glob("clean/*/manifest.json"))
    manifest = json.loads(path.read_text())
    whole = path.read_text()
    name = next(iter(manifest["files"]))
    manifest["files"][name]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest | {"content_digest": "0" * 64}))
    try:
        code, result = reproduce(store, str(path.parent))
    finally:
        path.write_text(whole)
    assert code == 1
    [failed] = [one for one in result["stages"] if not one["reproduced"]]
    assert failed["differing"] == [name]
    assert Path(result["store"]).is_dir(), "what was made is kept, to look at"
