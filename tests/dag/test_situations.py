"""What happens to stores, disks and clocks: a run ends in a stated state, and the next one heals it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from casa_core.errors import CasaError
from pipelines.dag import job_main
from pipelines.dag.artifact import read_manifest
from pipelines.dag.attempts import kinds
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import UNFINISHED_S, JobSpec, Outcome, Records
from pipelines.dag.run import Runner
from pipelines.storage import retry, s3
from pipelines.storage.remote_path import RemotePath
from tests.support.dag.job_server import StandIn, job_server
from tests.support.dag.runner import STAGES, Notes
from tests.support.s3 import S3Server, flaky


def on_s3(store: Path, data: RemotePath) -> PlannedStage:
    """A stage whose artifact lies on S3, and its records on a disk."""
    spec = StageSpec(
        name="numbers", kind="clean", settings={"number": 7}, function=f"{STAGES}:write_number",
        placement={"data_store": str(data)},
    )  # fmt: skip
    (stage,) = plan([spec], store, {"clean": "1"})
    Records(store).prepare()
    return stage


def test_a_store_that_is_out_of_reach_is_a_failure_of_its_kind_and_the_next_attempt_heals_it(
    s3_server: S3Server, s3_folder: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    with flaky(s3_server) as proxy:
        stage = on_s3(tmp_path, proxy.through(s3_folder))
        proxy.fail_every = 1
        outcome = job_main.run_job(JobSpec.of(stage, tmp_path, 1))
        assert (outcome.ok, outcome.kind, outcome.explained) == (False, "store", True)
        assert "its server does not answer" in outcome.what
        assert "AWS_ENDPOINT_URL" in outcome.remedy
        proxy.fail_every = 0
        assert job_main.run_job(JobSpec.of(stage, tmp_path, 2)) == Outcome(ok=True)


def test_the_parts_of_an_upload_that_a_killed_job_left_go_with_the_next_commit(
    s3_folder: RemotePath, tmp_path: Path
):
    stage = on_s3(tmp_path, s3_folder)
    half = stage.folder / "large"
    assert isinstance(half, RemotePath)
    upload = s3.call(half.settings, "create_multipart_upload", half.bucket, half.key)["UploadId"]
    s3.call(
        half.settings, "upload_part", half.bucket, half.key, UploadId=upload, PartNumber=1, Body=b"x" * 1000
    )
    assert len(s3.list_uploads(half.settings, half.bucket, stage.folder.key)) == 1
    assert job_main.run_job(JobSpec.of(stage, tmp_path, 1)) == Outcome(ok=True)
    assert s3.list_uploads(half.settings, half.bucket, stage.folder.key) == []
    manifest = read_manifest(stage.folder)
    assert manifest is not None
    assert sorted(manifest["files"]) == ["number.txt"]


@pytest.mark.parametrize("days", [-1, 1], ids=["a day behind", "a day ahead"])
def test_records_that_another_run_is_writing_are_left_alone_by_a_machine_whose_clock_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
):
    records = Records(tmp_path)
    records.prepare()
    young, old = (records.jobs / f".{name}.json.{os.getpid()}" for name in ("young", "old"))
    for path in (young, old):
        path.touch()
    written = time.time() - UNFINISHED_S - 60
    os.utime(old, (written, written))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86400)
    records.prepare()
    assert list(records.jobs.iterdir()) == [young]


@pytest.mark.parametrize("writer", ["store", "plain"])
def test_a_run_on_a_disk_that_fills_up_says_so_and_goes_on_once_there_is_room(
    small_disk: Path, writer: str, monkeypatch: pytest.MonkeyPatch
):
    """What a stage leaves may fill the disk so that nothing more can be recorded."""
    monkeypatch.setitem(kinds.RETRIES, "lost", kinds.Retries("lost", most=1, first_s=0.01, longest_s=0.01))
    spec = StageSpec(
        name="numbers", kind="fill_disk", settings={"writer": writer}, function=f"{STAGES}:fill_disk"
    )
    with job_server() as server:
        cluster, records = StandIn(server, small_disk), Records(small_disk)
        with pytest.raises(CasaError, match="the disk is full") as caught:
            Runner(plan([spec], small_disk, {"fill_disk": "1"}), records, cluster, Notes()).run()
        assert "MiB are free" in caught.value.why
        assert "Free space there" in caught.value.remedy
        subprocess.run(["mount", "-o", "remount,size=32m", small_disk], check=True)
        assert Runner(plan([spec], small_disk, {"fill_disk": "1"}), records, cluster, Notes()).run()
