"""Artifacts taken from one store into another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import StoreError
from pipelines.dag import artifact
from pipelines.dag.fingerprint import stage_fingerprint
from pipelines.dag.history.adoption import adopt_artifact
from pipelines.dag.history.lineage import lineage
from pipelines.dag.plan import plan
from pipelines.storage.remote_path import RemotePath
from tests.dag.history.test_history import VERSIONS, Store


@pytest.fixture
def theirs(tmp_path: Path) -> Store:
    return Store(tmp_path / "theirs")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return tmp_path / "ours"


def test_an_adopted_artifact_is_the_same_and_a_plan_finds_it_done(theirs: Store, ours: Path):
    made = theirs.run()
    [(folder, _)] = adopt_artifact(made["train"], "train", ours)
    before, after = artifact.read_manifest(made["train"]) or {}, artifact.read_manifest(folder) or {}
    assert after["content_digest"] == before["content_digest"]
    assert after["provenance"]["adopted"]["from"] == str(made["train"])
    assert after["provenance"]["started"] == before["provenance"]["started"]
    assert artifact.verify(folder) == []
    planned = {
        stage.name: stage.status for stage in plan([one.spec for one in theirs.stages], ours, VERSIONS)
    }
    assert planned == {"clean": "run", "train": "done", "evaluate": "run"}
    assert list(adopt_artifact(made["train"], "train", ours)) == [], "it is there already"


def test_what_does_not_verify_is_refused_and_leaves_nothing(theirs: Store, ours: Path, tmp_path: Path):
    made = theirs.run()
    with pytest.raises(StoreError, match="is a train artifact"):
        list(adopt_artifact(made["train"], "pack", ours))
    copied = Path(shutil.copytree(made["train"], tmp_path / "copied"))
    (copied / "number.txt").write_text("999")
    with pytest.raises(StoreError, match="was altered"):
        list(adopt_artifact(copied, "train", ours))
    (copied / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not an artifact"):
        list(adopt_artifact(copied, "train", ours))
    assert not ours.exists()


@pytest.mark.parametrize("name", ["what", "code_version", "fingerprint", "content_digest"])
def test_a_manifest_that_was_changed_by_hand_is_refused(theirs: Store, ours: Path, name: str):
    folder = theirs.run()["train"]
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"train": {"steps": 7}} if name == "what" else "0" * 40
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="contradicts itself"):
        list(adopt_artifact(folder, "train", ours))


def packed(store: Path, clean: str) -> Path:
    """A pack artifact that refers to a clean one."""
    identity = {"kind": "pack", "what": {}, "location": {}, "inputs": {"a": clean}, "code_version": "1"}
    fingerprint = stage_fingerprint("pack", {}, {"a": clean}, "1")
    folder = store / "pack" / fingerprint
    artifact.begin(folder)
    (folder / "rows").write_text("1")
    artifact.commit(folder, {"fingerprint": fingerprint, **identity}, {}, {"stage": "pack"})
    return folder


def test_packed_data_bring_along_the_clean_data_that_they_refer_to(theirs: Store, ours: Path, tmp_path: Path):
    clean = theirs.run()["clean"]
    pack = packed(theirs.root, clean.name)
    taken = [folder for folder, _ in adopt_artifact(pack, "pack", ours)]
    assert taken == [ours / "clean" / clean.name, ours / "pack" / pack.name]
    assert lineage(taken[1]).inputs["a"].folder == taken[0]
    alone = Path(shutil.copytree(pack, tmp_path / "alone" / "pack" / pack.name))
    with pytest.raises(StoreError, match="is in neither store"):
        list(adopt_artifact(alone, "pack", tmp_path / "third"))
    assert [folder for folder, _ in adopt_artifact(alone, "pack", ours)] == [], "both are there"


@pytest.mark.slow
def test_an_artifact_goes_to_a_store_on_s3_and_back(theirs: Store, s3_folder: RemotePath, ours: Path):
    folder = theirs.run()["train"]
    [(there, _)] = adopt_artifact(folder, "train", s3_folder)
    assert artifact.verify(there) == []
    [(back, manifest)] = adopt_artifact(there, "train", ours)
    assert (back / "number.txt").read_bytes() == (folder / "number.txt").read_bytes()
    assert manifest["content_digest"] == (artifact.read_manifest(folder) or {})["content_digest"]


def test_another_content_under_the_same_fingerprint_is_refused(theirs: Store, ours: Path):
    folder = theirs.run()["train"]
    list(adopt_artifact(folder, "train", ours))
    manifest = artifact.read_manifest(folder) or {}
    (folder / "number.txt").write_text("other")
    identity = {k: manifest[k] for k in ("fingerprint", "kind", "what", "location", "inputs", "code_version")}
    artifact.commit(folder, identity, {}, manifest["provenance"])
    with pytest.raises(StoreError, match="with other contents"):
        list(adopt_artifact(folder, "train", ours))
