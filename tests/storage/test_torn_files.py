"""What a loss of power leaves of files counts as absent, and what was committed is not lost by it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from casa_core.errors import DataError
from pipelines.cli.app import app
from pipelines.dag.artifact import commit, verify
from pipelines.dag.raw_inputs import identify
from pipelines.dag.records import Outcome, Records
from pipelines.evaluate.kept.answers import Answer, AnswerStore
from pipelines.evaluate.results import read_result
from pipelines.storage.atomic import create, remember, write_whole
from pipelines.train.metrics import read_scores

TORN = [b"", bytes(4096), b'{"recipe": "quick', b"\xff\xfe", b"12"]
torn = pytest.mark.parametrize("torn", TORN, ids=["empty", "zeros", "cut", "no text", "no object"])


def test_a_file_is_on_the_disk_before_its_name_is_and_its_name_before_the_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        is_folder = Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path
        happened.append("name synced" if is_folder else "content synced")

    def renamed(self: Path, target: Path) -> Path:
        happened.append("named")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_whole(tmp_path / "file", "text")
    assert happened == ["content synced", "named", "name synced"]


@torn
def test_records_of_jobs_and_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: bytes):
    records = Records(tmp_path)
    records.prepare()
    records.write_outcome("clean-1", Outcome(ok=False, what="It failed."))
    records.outcome_path("clean-1").write_bytes(torn)
    (tmp_path / "session" / "run.json").write_bytes(torn)
    assert records.outcome("clean-1") is None
    assert records.read_run() is None
    assert caplog.text.count(str(records.outcome_path("clean-1"))) == 1
    shown = CliRunner().invoke(app, ["status", "--store", str(tmp_path)])
    assert shown.exit_code == 2
    assert "There is no run in" in shown.output
    assert CliRunner().invoke(app, ["stop", "--store", str(tmp_path)]).exit_code == 0


def test_the_next_run_removes_what_killed_writers_left_and_no_young_file(tmp_path: Path):
    records = Records(tmp_path)
    records.prepare()
    names = [".clean-1.json.4711", ".clean-1.outcome.json.4712", "clean-1.json", "clean-1.log"]
    for name in names:
        (tmp_path / "jobs" / name).write_text("{}")
        os.utime(tmp_path / "jobs" / name, (1_700_000_000, 1_700_000_000))
    (tmp_path / "jobs" / ".pack-1.json.4713").write_text("{")
    records.prepare()
    left = {path.name for path in (tmp_path / "jobs").iterdir()}
    assert left == {"clean-1.json", "clean-1.log", ".pack-1.json.4713"}


@torn
def test_the_cache_of_hashes_is_made_anew(tmp_path: Path, torn: bytes):
    (tmp_path / "data").write_text("raw")
    expected = identify(tmp_path / "data")
    cache = tmp_path / "raw_hashes.json"
    cache.write_bytes(torn)
    assert identify(tmp_path / "data", cache) == expected
    assert len(json.loads(cache.read_text())) == 1


@torn
def test_a_digest_kept_beside_a_file_is_computed_again(tmp_path: Path, torn: bytes):
    with create(tmp_path / "shard") as output:
        output.write(b"rows")
    assert output.written is not None
    remember(tmp_path / "shard", output.written)
    (tmp_path / ".digests" / "shard.json").write_bytes(torn)
    commit(tmp_path, {"fingerprint": "f", "kind": "toy"}, {}, {})
    assert verify(tmp_path) == []


@torn
def test_answers_results_and_scores(tmp_path: Path, torn: bytes):
    answers = AnswerStore(tmp_path, "model")
    answer = Answer(text="yes", finish_reason="stop", prompt_tokens=3, image_tokens=4, completion_tokens=1)
    answers.add([("kept", answer)])
    (tmp_path / "model" / "0.parquet").write_bytes(torn)
    assert list(answers.read()) == ["kept"]
    (tmp_path / "result.json").write_bytes(torn)
    with pytest.raises(DataError, match="holds no result"):
        read_result(tmp_path)
    (tmp_path / "scores.json").write_bytes(torn)
    assert read_scores(tmp_path) == {}
