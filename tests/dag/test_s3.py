"""Runs whose data artifacts live on a real S3 server, job by job, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.dag import artifact, job_main
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import JobSpec, Outcome, Records
from pipelines.data.clean import run as clean
from pipelines.data.pack import run as pack
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.data.store.shard_pipeline import run_here
from pipelines.recipe import load_recipe
from pipelines.recipe.stages import build_stages, store_folder
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.transfer import local_output
from pipelines.storage.uri import Folder, open_folder
from tests.data.test_pack import PACK
from tests.support.dag.runner import toy
from tests.support.s3 import flaky

CORPUS = {"generator": "moving_shapes", "train_clips": 3, "test_clips": 1, "seconds": 2.0, "fps": 10}


def where(store: Path, data: Folder | None) -> dict[str, Any]:
    return {"store": str(store), "data_store": str(data) if data else None, "data": {"workers": 1}}


ROOMS = {"corpus": "generate", "clean": "clean", "pack": "pack"}


def data_stages(place: dict[str, Any]) -> list[StageSpec]:
    """Corpus, clean and pack of a few clips."""
    cleaning = {"source": "live", "reader": "live_whisperx", "fps": 2.0, "max_failures": 0.9}
    packing = PACK | {"sources": ["live"], "text_tokens": 200, "image_tokens": 300, "video": None}
    return [
        StageSpec(
            name=name,
            kind=name,
            settings=what,
            function=f"pipelines.data.{ROOMS[name]}.run:run_stage",
            inputs=inputs,
            placement=place,
        )
        for name, what, inputs in (
            ("corpus", {"make": CORPUS, "seed": 0}, {}),
            ("clean", cleaning, {"corpus": "corpus"}),
            ("pack", packing, {"live": "clean"}),
        )
    ]  # fmt: skip


def planned(stages: list[StageSpec], store: Folder) -> list[PlannedStage]:
    return plan(stages, store, {stage.kind: "1" for stage in stages})


def run(stages: list[StageSpec], store: Path) -> list[PlannedStage]:
    """Runs each stage's job in this process; returns the stages as a plan sees them afterwards."""
    records = Records(store)
    records.prepare()
    for stage in planned(stages, store):
        outcome = job_main.run_job(JobSpec.of(stage, store, 1))
        assert outcome.ok, outcome
    return planned(stages, store)


@pytest.fixture
def without_ray(monkeypatch):
    for stage in (clean, pack):
        monkeypatch.setattr(stage, "on_ray", lambda workers: run_here)


def test_a_run_with_its_data_on_s3_makes_the_same_artifacts_as_one_in_folders(
    s3_folder, tmp_path, without_ray
):
    here = run(data_stages(where(tmp_path / "here", None)), tmp_path / "here")
    there = run(data_stages(where(tmp_path / "there", s3_folder)), tmp_path / "there")
    for ours, theirs in zip(there, here, strict=True):
        assert ours.status == theirs.status == "done"
        assert ours.fingerprint == theirs.fingerprint  # Where something lies decides nothing.
        assert ours.folder == s3_folder / ours.spec.kind / ours.fingerprint
        on_s3, on_disk = artifact.read_manifest(ours.folder), artifact.read_manifest(theirs.folder)
        assert on_s3 is not None
        assert on_disk is not None
        assert on_s3["content_digest"] == on_disk["content_digest"]
        assert artifact.verify(ours.folder) == []
    assert not (tmp_path / "there" / "clean").exists()
    assert not [path for path in s3_folder.rglob("*") if any(p.startswith(".") for p in path.key.split("/"))]
    clean_folders, pack_folders = ([stages[n].folder for stages in (there, here)] for n in (1, 2))
    readers = [CleanReader(folder, "train") for folder in clean_folders]
    assert list(readers[0]) == list(readers[1])
    packs = [PackReader(folder) for folder in pack_folders]
    assert list(packs[0]) == list(packs[1])


def test_a_large_model_is_not_read_back_for_its_digest(s3_server, s3_folder):
    with flaky(s3_server) as proxy:
        folder = proxy.through(s3_folder)
        artifact.begin(folder)
        with local_output(folder / "model") as local:
            (local / "model.safetensors").write_bytes(bytes(17 << 20))
            (local / "config.json").write_text("{}")
        artifact.commit(folder, {"fingerprint": "f", "kind": "train"}, {}, {})
        assert not [
            path for method, path, _ in proxy.requests if method == "GET" and path.endswith(".safetensors")
        ]
    assert artifact.verify(s3_folder) == []
    assert len(list(s3_folder.rglob("*"))) == 3


def test_a_plan_and_the_records_of_a_run_say_where_an_artifact_lies(s3_folder, tmp_path):
    place = where(tmp_path, s3_folder)
    stages = [StageSpec(name="clean-a", kind="clean", settings={}, function="m:f", placement=place)]
    stages.append(
        StageSpec(
            name="train", kind="train", settings={}, function="m:f", placement=place, inputs={"a": "clean-a"}
        )
    )
    first, second = planned(stages, tmp_path)
    assert first.folder == s3_folder / "clean" / first.fingerprint
    assert second.folder == tmp_path / "train" / second.fingerprint
    assert (first.status, first.reason) == ("run", "never made in this store")
    spec = JobSpec.of(second, tmp_path, 1)
    assert open_folder(spec.inputs["a"]) == first.folder
    (first.folder / "half").write_bytes(b"half")
    assert "did not finish" in planned(stages, tmp_path)[0].reason
    artifact.commit(first.folder, {"fingerprint": first.fingerprint, "kind": "clean"}, {}, {})
    assert planned(stages, tmp_path)[0].status == "done"
    records = Records(tmp_path)
    records.prepare()
    records.write_run("recipe", {}, "", [first, second])
    recorded = records.read_run()
    assert recorded is not None
    assert [open_folder(stage["folder"]) for stage in recorded["stages"]] == [first.folder, second.folder]


def test_a_job_whose_artifact_another_store_has_committed_meanwhile_has_done_its_work(
    s3_folder, tmp_path, monkeypatch
):
    """The other run ended our uploads when it committed: what we were writing is there already."""
    stages = [toy("numbers", "write_number", number=7)]
    spec = StageSpec(
        name="numbers", kind="clean", settings=stages[0].settings, function=stages[0].function,
        placement=where(tmp_path, s3_folder),
    )  # fmt: skip
    (stage,) = planned([spec], tmp_path)
    Records(tmp_path).prepare()

    def outrun(name: str) -> Any:
        def function(context: Any) -> dict[str, Any]:
            (context.output / "number.txt").write_text("7")
            artifact.commit(context.output, {"fingerprint": stage.fingerprint, "kind": "clean"}, {}, {})
            upload = context.output / "large"
            raise_no_such_upload(upload)
            return {}

        return function

    monkeypatch.setattr(job_main, "load_function", outrun)
    assert job_main.run_job(JobSpec.of(stage, tmp_path, 1)) == Outcome(ok=True)


def raise_no_such_upload(path: RemotePath) -> None:
    """What the server says of an upload that somebody ended."""
    from pipelines.storage import s3

    where = path.bucket, path.key
    upload = s3.call(path.settings, "create_multipart_upload", *where)["UploadId"]
    s3.call(path.settings, "abort_multipart_upload", *where, UploadId=upload)
    s3.call(path.settings, "upload_part", *where, UploadId=upload, PartNumber=1, Body=b"late")


def test_a_recipe_needs_one_line_to_have_its_data_on_s3(tmp_path):
    overrides = [f"where.store={tmp_path}", "where.data_store=s3://bucket/runs"]
    server = ["where.s3.endpoint=http://minio:9000"]
    fingerprints = []
    for changes, query in (([], ""), (server, "?endpoint_override=http://minio:9000")):
        stages = build_stages(load_recipe("quickstart", overrides + changes))
        folders = {s.spec.kind: s for s in plan_without_looking(stages, tmp_path)}
        for kind in ("corpus", "clean", "pack"):
            folder = folders[kind].folder
            assert str(folder) == f"s3://bucket/runs/{kind}/{folders[kind].fingerprint}{query}"
        assert folders["train"].folder == tmp_path / "train" / folders["train"].fingerprint
        fingerprints.append([folders[kind].fingerprint for kind in sorted(folders)])
    plain = plan_without_looking(
        build_stages(load_recipe("quickstart", [f"where.store={tmp_path}"])), tmp_path
    )
    assert fingerprints[0] == fingerprints[1]
    assert {s.fingerprint for s in plain} >= set(fingerprints[0])


def test_a_recipe_needs_one_line_to_have_everything_on_s3(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    place = "where.store=s3://bucket/runs"
    recipe = load_recipe("quickstart", [place, "where.s3.endpoint=http://minio:9000"])
    stages = plan_without_looking(build_stages(recipe), store_folder(recipe))
    for stage in stages:
        folder = f"s3://bucket/runs/{stage.spec.kind}/{stage.fingerprint}"
        assert str(stage.folder) == f"{folder}?endpoint_override=http://minio:9000"
        assert open_folder(stage.spec.placement["store"]) == store_folder(recipe)
    at_home = load_recipe("quickstart", [f"where.store={tmp_path}"])
    plain = plan_without_looking(build_stages(at_home), tmp_path)
    assert [stage.fingerprint for stage in stages] == [stage.fingerprint for stage in plain]


def plan_without_looking(stages: list[StageSpec], store: Folder) -> list[PlannedStage]:
    """A plan of stages whose bucket nobody has: only where things would lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.dag.plan._status", lambda *_: ("run", "", []))
        return planned(stages, store)
