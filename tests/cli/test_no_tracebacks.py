"""Whatever goes wrong around a command, it ends in a sentence: what, why, and what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from tests.support.cli.store import prepare_small
from tests.support.cli.walk import CONDITIONS, Place, commands, leaves
from tests.support.paths import ROOT

ALONE = ["unshare", "--mount"]
NEEDS_MOUNTS = ("store_on_a_full_disk", "store_that_cannot_be_written", "temporary_folder_that_is_full")
FAST = "store_on_a_full_disk"
"""A walk takes half a minute: one is among the fast tests."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "store"
    prepare_small(folder)
    return folder


def test_the_walk_leaves_no_command_out():
    place = Place(store="s", folder=Path("f"), checkpoint="c")
    words = [" ".join(each) for each in commands(place).values()]
    assert [leaf for leaf in leaves() if not any(f"{each} ".startswith(f"{leaf} ") for each in words)] == []


def test_a_store_that_was_moved_has_its_artifacts_with_it(store: Path, tmp_path: Path):
    before = tmp_path / "before"
    shutil.copytree(store, before)
    record = before / "session" / "run.json"
    record.write_text(record.read_text().replace(str(store), str(before)))
    before.rename(tmp_path / "now")
    for words in (["verify"], ["data", "inspect", "pack", "--sequence", "0"], ["lineage", "pack"]):
        result = CliRunner().invoke(app, [*words, "--store", str(tmp_path / "now")])
        assert result.exit_code == 0, result.output
    verified = CliRunner().invoke(app, ["verify", "--store", str(tmp_path / "now")]).output
    assert [line for line in verified.splitlines() if line.endswith(": intact")] == verified.splitlines()
    assert len(verified.splitlines()) == 5


@pytest.mark.parametrize(
    "condition",
    [pytest.param(name, marks=() if name == FAST else pytest.mark.slow) for name in CONDITIONS],
)
def test_no_command_ends_in_a_traceback(condition: str, store: Path, tiny_checkpoint: Path, tmp_path: Path):
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        if condition in NEEDS_MOUNTS:
            pytest.skip("no disk can be mounted here")
        command: list[str] = []
    else:
        command = list(ALONE)
    command += [sys.executable, "-m", "tests.support.cli.walk"]
    done = subprocess.run(
        [*command, condition, str(store), str(tmp_path), str(tiny_checkpoint)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(commands(Place(store="s", folder=tmp_path, checkpoint="c"))), done.stderr[-3000:]
    escaped = {line["name"]: line["escaped"] for line in lines if line["escaped"]}
    assert not escaped, "\n".join(f"{name}: {error}" for name, error in escaped.items())
    for line in lines:
        assert "Traceback (most recent" not in line["output"], (line["name"], line["output"])
        if line["exit"]:  # what, why or what to do: more than one bare word
            assert len(line["output"].split()) > 5, line
