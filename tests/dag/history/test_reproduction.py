"""Runs made again from their manifests: on artifacts committed by hand."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from casa_core.errors import ConfigError
from pipelines.cli.app import app
from pipelines.dag import artifact
from pipelines.dag.history.lineage import lineage
from pipelines.dag.history.reproduction import (
    TOLERANCES,
    compare_remade,
    environment_differences,
    made_by_stages,
    read_tolerances,
    stage_specs,
)
from pipelines.dag.plan import plan
from pipelines.dag.raw_inputs import identify
from tests.dag.history.test_history import VERSIONS, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_runs_manifests_lead_to_the_same_fingerprints_in_another_store(store: Store, tmp_path: Path):
    made = store.run()
    found = made_by_stages([lineage(made["evaluate"]), lineage(made["train"])])
    specs = stage_specs(found, lambda where: {**where, "elsewhere": True})
    assert [spec.name for spec in specs] == ["clean", "train", "evaluate"]
    assert specs[1].function == "pipelines.train.run:run_stage"
    planned = plan(specs, tmp_path / "other", VERSIONS)
    assert {stage.name: stage.fingerprint for stage in planned} == {n: f.name for n, f in made.items()}
    assert {stage.status for stage in planned} == {"run"}


def test_stages_of_one_name_from_two_runs_are_kept_apart(store: Store, tmp_path: Path):
    one, other = store.run(), store.run(steps=200)
    found = made_by_stages([lineage(one["train"]), lineage(other["train"])])
    names = [spec.name for spec in stage_specs(found, dict)]
    assert names == ["clean", "train", f"train-{other['train'].name[:6]}"]


def test_where_a_location_was_part_of_what_was_asked_for_it_is_told_apart_again(tmp_path: Path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.txt").write_text("one")
    what = {"raw": identify(raw), "source": "x"}
    identity = {
        "fingerprint": "f" * 40,
        "kind": "clean",
        "what": {**what, "path": str(raw)},
        "location": {"path": str(raw)},
        "inputs": {},
        "code_version": "1",
    }
    folder = tmp_path / "clean" / ("f" * 40)
    artifact.begin(folder)
    artifact.commit(folder, identity, {}, {"stage": "clean-x"})
    made = made_by_stages([lineage(folder)])
    [spec] = stage_specs(made, dict)
    assert (spec.settings, spec.location) == (what, {"path": str(raw)})
    versions = {"clean": "1"}
    assert environment_differences(made, {}, versions) == []
    (raw / "a.txt").write_text("two")
    [found] = environment_differences(made, {}, versions)
    assert found.name == "raw path of clean"
    assert found.is_decisive
    (raw / "a.txt").unlink()
    assert environment_differences(made, {}, versions)[0].present == "absent"


def test_another_version_of_a_stages_code_is_a_decisive_difference(store: Store):
    made = made_by_stages([lineage(store.run()["train"])])
    assert environment_differences(made, {}, VERSIONS) == []
    [found] = environment_differences(made, {}, VERSIONS | {"train": "7"})
    assert (found.name, found.recorded, found.present) == ("version of train", "2", "7")


def test_what_is_gone_or_was_made_elsewhere_cannot_be_made_again(store: Store):
    made = store.run()
    found = lineage(made["train"])
    manifest = dict(found.manifest or {})
    adopted = replace(found, manifest={**manifest, "provenance": {"stage": "train", "adopted": {}}})
    with pytest.raises(ConfigError, match="made elsewhere"):
        made_by_stages([adopted])
    (made["clean"] / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="no longer in the store"):
        made_by_stages([lineage(made["train"])])


def manifest(kind: str, summary: dict[str, Any], **files: str) -> dict[str, Any]:
    listed = {name: {"bytes": 1, "sha256": digest} for name, digest in files.items()}
    return {
        "kind": kind,
        "fingerprint": "a" * 40,
        "summary": summary,
        "files": listed,
        "content_digest": artifact.content_digest(listed),
    }


def test_data_are_reproduced_only_byte_for_byte():
    before, after = manifest("pack", {"rows": 1}, a="1", b="2"), manifest("pack", {"rows": 1}, a="1", b="3")
    assert compare_remade("pack", before, before, frozenset(), TOLERANCES).is_reproduced
    found = compare_remade("pack", before, after, frozenset(), TOLERANCES)
    assert (found.is_reproduced, found.differing) == (False, ["b"])


@pytest.mark.parametrize(
    ("before", "after", "is_reproduced"),
    [
        ({"final_loss": 0.5}, {"final_loss": 0.504}, True),
        ({"final_loss": 0.5}, {"final_loss": 0.506}, False),
        ({"accuracy": 0.90}, {"accuracy": 0.909}, True),
        ({"accuracy": 0.90}, {"accuracy": 0.88}, False),
        ({"steps": 60}, {"steps": 61}, False),
        ({"accuracy": 0.9}, {}, False),
        ({"text_tokens_per_second": 100.0}, {"text_tokens_per_second": 900.0}, True),
        ({"frame_ms_p50": 7.0, "loader_wait_share": 0.1, "bytes": 5}, {}, True),
    ],
)
def test_metrics_are_compared_within_the_tolerance_of_their_kind(
    before: dict[str, Any], after: dict[str, Any], is_reproduced: bool
):
    one, other = manifest("train", before, w="1"), manifest("train", after, w="2")
    assert compare_remade("train", one, other, frozenset(), TOLERANCES).is_reproduced == is_reproduced


def test_a_tolerance_can_be_given_and_a_wrong_one_is_refused():
    assert read_tolerances(["loss=0.5"]) == {**TOLERANCES, "loss": 0.5}
    for wrong in ("loss", "loss=x", "gain=1", "score=-1"):
        with pytest.raises(ConfigError, match="is no tolerance"):
            read_tolerances([wrong])


def casa(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})


def test_the_check_names_differences_and_their_remedies_and_makes_nothing(store: Store):
    store.run()
    result = casa("reproduce", "--check", "--json", "--store", str(store.root))
    found = json.loads(result.output)
    assert result.exit_code == 1, "the versions of stages are other ones here"
    assert {one["name"] for one in found["differences"]} >= {"version of train", "version of clean"}
    assert all(one["remedy"] for one in found["differences"])
    text = casa("reproduce", "evaluate", "--check", "--store", str(store.root)).output
    assert "! version of train: 2 → " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.steps=3"], "another run"),
        (["--set", "where.ray.address=http://head:8265"], "would see no temporary"),
        (["--tolerance", "x=1"], "is no tolerance"),
        (["nothing"], "has no stage nothing"),
        (["--into", "STORE"], "is the run's own store"),
    ],
)
def test_a_mistake_is_explained_before_anything_runs(
    store: Store, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.run()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    words = [str(store.root) if word == "STORE" else word for word in arguments]
    result = casa("reproduce", *words, "--store", str(store.root))
    assert result.exit_code == 2
    assert message in result.output
    assert not any((tmp_path / "temporary").iterdir()), "nothing is left"
