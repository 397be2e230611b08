"""Commands on a store that lies on a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.dag import artifact
from pipelines.dag.plan import StageSpec, plan
from pipelines.dag.records import JobSpec, Records
from pipelines.storage.growing import append_to
from pipelines.storage.uri import Folder


@pytest.fixture
def store(s3_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A store whose latest run has made its report; commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    stages = plan(
        [StageSpec(name="report", kind="report", settings={}, function="m:f")], s3_folder, {"report": "1"}
    )
    folder, records = stages[0].folder, Records(s3_folder)
    (folder / "report.html").write_text("Run report")
    (folder / "cards" / "pack.html").write_text("card")
    path = str(folder / "report.html")
    artifact.commit(
        folder, {"fingerprint": stages[0].fingerprint, "kind": "report"}, {"path": path, "headline": path}, {}
    )
    records.prepare()
    records.write_run("quickstart", {"address": "local"}, "http://127.0.0.1:9", stages)
    spec = JobSpec.of(stages[0], s3_folder, 1)
    records.write_spec(spec)
    log = append_to(records.log_path(spec.job_id))
    log.write(b'::progress [1.0, 1.0, ""]\nreport drawn\n')
    log.close()
    return s3_folder


def casa(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_state_log_and_digests_are_read_where_they_lie(store: Folder):
    (stage,) = json.loads(casa("status", "--store", store, "--json"))["stages"]
    assert (stage["state"], stage["attempts"]) == ("done", 1)
    assert casa("logs", "report", "--store", store) == "report drawn\n"
    assert casa("verify", "--store", store) == "report: intact\n"
    assert casa("verify", stage["artifact"]).endswith("intact\n")
    assert casa("stop", "--store", store) == "Nothing was running.\n"


def test_the_report_is_copied_to_where_a_browser_can_open_it(store: Folder, tmp_path: Path):
    assert casa("report", "--store", store) == "report/report.html\n"
    assert (tmp_path / "report" / "report.html").read_text() == "Run report"
    assert (tmp_path / "report" / "cards" / "pack.html").read_text() == "card"
    found = json.loads(casa("report", "--store", store, "--output", tmp_path / "mine", "--json"))
    assert found == {"report": str(tmp_path / "mine" / "report.html")}


def test_the_doctor_asks_whether_the_store_lets_one_of_two_writers_win(store: Folder):
    checks = {check["name"]: check for check in json.loads(CliRunner().invoke(
        app, ["doctor", "--store", str(store), "--json"]).output)}  # fmt: skip
    assert checks["store"]["level"] == "ok"
    nowhere = str(store).replace("casa-tests", "no-such-bucket", 1)
    checks = {check["name"]: check for check in json.loads(CliRunner().invoke(
        app, ["doctor", "--store", nowhere, "--json"]).output)}  # fmt: skip
    assert checks["store"]["level"] == "problem"
    assert "bucket" in checks["store"]["found"]
