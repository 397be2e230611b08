"""What artifacts were made of, what sets two apart, and what can go: on artifacts committed by hand."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import ConfigError
from pipelines.dag import artifact
from pipelines.dag.changes import Change, changes, nearest
from pipelines.dag.history.collection import garbage, remove
from pipelines.dag.history.lineage import Made, compare, find_by_fingerprint, lineage
from pipelines.dag.plan import StageSpec, plan
from pipelines.dag.records import Records

NEVER = timedelta(days=1000)
VERSIONS = {"clean": "1", "train": "2", "evaluate": "3"}


class Store:
    """A store whose stages were made by hand: clean → train → evaluate."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: list[Any] = []

    def run(self, **settings: Any) -> dict[str, Path]:
        """Make what a run with some settings lacks, and record it as the latest; stage → folder."""
        given = {"fps": 2, "steps": 100, "batch_size": 8} | settings
        specs = [
            StageSpec(name="clean", kind="clean", settings={"fps": given["fps"]}, function="x:y"),
            StageSpec(
                name="train",
                kind="train",
                settings={"train": {"steps": given["steps"]}},
                function="x:y",
                inputs={"data": "clean"},
            ),
            StageSpec(
                name="evaluate",
                kind="evaluate",
                settings={"batch_size": given["batch_size"]},
                function="x:y",
                inputs={"train": "train", "data": "clean"},
            ),
        ]
        self.stages = plan(specs, self.root, VERSIONS)
        for stage in self.stages:
            if stage.status == "run":
                identity = {
                    "fingerprint": stage.fingerprint,
                    "kind": stage.spec.kind,
                    "what": stage.spec.settings,
                    "location": {},
                    "inputs": {role: folder.name for role, folder in stage.inputs.items()},
                    "code_version": stage.code_version,
                }
                made = {"stage": stage.name, "started": datetime.now(UTC).isoformat()}
                artifact.begin(stage.folder)
                (stage.folder / "number.txt").write_text(str(given["steps"]))
                artifact.commit(stage.folder, identity, {"loss": 1 / given["steps"]}, made)
        records = Records(self.root)
        records.prepare()
        records.write_run("toy", {}, "", self.stages)
        return {stage.name: Path(str(stage.folder)) for stage in self.stages}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def manifest(what: dict[str, Any], stage: str = "train", **more: Any) -> dict[str, Any]:
    return {"what": what, "inputs": {}, "code_version": "1", "provenance": {"stage": stage}, **more}


def test_every_value_that_differs_is_named_with_both_values():
    before = manifest({"train": {"steps": 100, "rate": 0.1}, "seed": 0}, inputs={"pack": "a" * 40})
    after = manifest({"train": {"steps": 200, "rate": 0.1}, "list": [1]}, inputs={"pack": "b" * 40})
    assert changes(before, after) == [
        Change("train.steps", "100", "200"),
        Change("list", "absent", "[1]"),
        Change("seed", "0", "absent"),
        Change("input pack", "a" * 12, "b" * 12),
    ]
    assert changes(before, {**before, "code_version": "2"}) == [Change("code version", "1", "2")]
    assert changes(before, before) == []


def test_work_is_compared_with_the_most_similar_artifact_of_its_own_stage():
    others = [
        manifest({"steps": 1, "seed": 5, "rate": 2}),
        manifest({"steps": 1, "seed": 0, "rate": 1}),
        manifest({"steps": 2, "seed": 0, "rate": 1}, stage="train-blind"),
    ]
    wanted = {**manifest({"steps": 2, "seed": 0, "rate": 1}), "stage": "train"}
    assert nearest(others, wanted) == [Change("steps", "1", "2")]
    assert nearest(others[2:], wanted) == [], "another stage's is what there is"
    assert nearest([], wanted) == []


def test_a_plan_names_what_changed_and_what_follows_from_it(store: Store):
    store.run()
    store.run(steps=200)
    again = Store(store.root)
    again.run(fps=4)
    specs = [stage.spec for stage in again.stages]
    changed = [
        StageSpec(name="clean", kind="clean", settings={"fps": 9}, function="x:y"),
        *specs[1:],
    ]
    clean, train, _ = plan(changed, store.root, VERSIONS | {"train": "7"})
    assert clean.reason in ("changed: fps: 2 → 9", "changed: fps: 4 → 9")
    assert train.reason == "new input from clean; changed: code version: 2 → 7"
    assert Change("code version", "2", "7") in train.changes


def test_lineage_leads_back_to_the_first_stage_and_says_what_is_gone(store: Store):
    made = store.run()
    found = lineage(made["evaluate"])
    assert (found.name.split()[0], set(found.inputs)) == ("evaluate", {"train", "data"})
    assert found.inputs["train"].inputs["data"] is found.inputs["data"], "one clean artifact, met twice"
    assert found.inputs["data"].folder == made["clean"]
    for file in made["clean"].iterdir():
        file.unlink()
    gone = lineage(made["evaluate"]).inputs["data"]
    assert (gone.manifest, gone.name) == (None, f"gone {made['clean'].name[:12]}")


def test_two_artifacts_differ_where_their_stages_do(store: Store):
    before, after = store.run(), store.run(fps=4, batch_size=16)
    one, other = lineage(before["evaluate"]), lineage(after["evaluate"])
    found = {own.role: own.changes for own in compare(one, other)}
    assert found == {
        "": [Change("batch_size", "8", "16")],
        "train": [],
        "data": [Change("fps", "2", "4")],
    }, "clean stands once, where it is met first"
    assert list(compare(lineage(before["train"]), lineage(before["train"]))) == []


def test_the_beginning_of_a_fingerprint_names_an_artifact(store: Store):
    made = store.run()
    assert find_by_fingerprint(made["train"].name[:8], store.root) == made["train"]
    with pytest.raises(ConfigError, match="names no artifacts"):
        find_by_fingerprint("0123456789ab", store.root)
    with pytest.raises(ConfigError, match="names 3 artifacts"):
        find_by_fingerprint("", store.root)


def folders(found: Any) -> set[Path]:
    return {one.folder for one in found}


def test_only_what_no_kept_artifact_was_made_of_can_go(store: Store):
    old, new = store.run(), store.run(steps=200)
    (store.root / "checkpoints" / old["train"].name).mkdir(parents=True)
    found = garbage(store.root, (), timedelta(0))
    assert [one.kind for one in found] == ["evaluate", "train", "checkpoints"], "users before what they use"
    assert folders(found[:2]) == {old["evaluate"], old["train"]}
    assert new["clean"] == old["clean"], "the latest run was made of it"
    assert garbage(store.root, [old["evaluate"]], timedelta(0)) == []
    assert folders(garbage(store.root, [old["train"]], timedelta(0))) == {old["evaluate"]}
    assert garbage(store.root, (), NEVER) == []
    gone = list(remove(store.root, found))
    assert folders(gone) == folders(found)
    assert not any(folder.exists() for folder in folders(found))
    assert artifact.verify(new["evaluate"]) == []
    assert garbage(store.root, (), timedelta(0)) == []


def test_a_young_artifact_keeps_what_it_was_made_of(store: Store):
    old = store.run()
    store.run(fps=4)
    assert garbage(store.root, (), timedelta(days=1)) == []
    for name in ("clean", "train"):
        path = old[name] / "manifest.json"
        long_ago = (datetime.now(UTC) - NEVER).isoformat()
        own = artifact.read_manifest(old[name]) or {}
        path.write_text(path.read_text().replace(own["provenance"]["started"], long_ago))
    assert garbage(store.root, (), timedelta(days=1)) == [], "evaluate is young, and was made of both"


def test_unfinished_folders_go_once_they_are_old_and_nothing_writes_them(store: Store):
    store.run()
    half = store.root / "train" / ("f" * 40)
    half.mkdir()
    (half / "half.bin").write_bytes(b"12345")
    assert garbage(store.root, (), timedelta(days=1)) == []
    for path in (half, half / "half.bin"):
        os.utime(path, (0, 0))
    [found] = garbage(store.root, (), timedelta(days=1))
    assert (found.folder, found.why, found.files, found.bytes) == (half, "unfinished", 1, 5)
    records = Records(store.root)
    with records.writing("train", half.name, lost=lambda: None):
        assert list(remove(store.root, [found])) == [], "a job writes it now"
        assert half.exists()
    assert list(remove(store.root, [found])) == [found]
    assert not half.exists()


def test_an_artifact_with_an_input_that_is_gone_is_compared_as_far_as_it_goes():
    own = manifest({"steps": 1}, kind="train", fingerprint="a" * 40)
    one = Made("a" * 40, own, None, {"data": Made("c" * 40, None, None)})
    other = Made("b" * 40, {**own, "what": {"steps": 2}}, None, {"data": Made("d" * 40, None, None)})
    assert [(d.role, d.changes) for d in compare(one, other)] == [
        ("", [Change("steps", "1", "2")]),
        ("data", []),
    ]
