"""From recipe to stages: which settings decide which stage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import ConfigError, StoreError
from pipelines.dag.code_version import STAGE_MODULES
from pipelines.dag.plan import plan
from pipelines.recipe import build_stages, load_recipe
from pipelines.recipe.stages import MODEL_FOLDERS, endpoint_of

VERSIONS = dict.fromkeys(STAGE_MODULES, "1")
TRAINED = {"train", "train-blind", "evaluate", "deploy", "report"}


def fingerprints(*overrides: str, store: Path = Path("runs")) -> dict[str, str]:
    recipe = load_recipe("quickstart", overrides)
    return {stage.name: stage.fingerprint for stage in plan(build_stages(recipe), store, VERSIONS)}


def changed(*overrides: str) -> set[str]:
    before, after = fingerprints(), fingerprints(*overrides)
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_the_quickstart_has_the_documented_stages_and_inputs():
    stages = {stage.name: stage for stage in build_stages(load_recipe("quickstart"))}
    assert list(stages) == [
        *("corpus-vqa", "clean-vqa", "corpus-live", "clean-live", "pack", "train", "train-blind"),
        *("evaluate", "deploy", "report"),
    ]
    assert stages["clean-vqa"].inputs == {"corpus": "corpus-vqa"}
    assert stages["pack"].inputs == {"vqa": "clean-vqa", "live": "clean-live"}
    assert stages["train"].inputs == {"pack": "pack", "vqa": "clean-vqa", "live": "clean-live"}
    assert stages["train"].settings["images"] is True
    assert stages["train-blind"].settings == {**stages["train"].settings, "images": False}
    evaluated = {"train": "train", "blind": "train-blind", "vqa": "clean-vqa", "live": "clean-live"}
    assert stages["evaluate"].inputs == evaluated
    assert stages["deploy"].state
    assert stages["report"].inputs == {name: name for name in stages if name not in ("deploy", "report")}
    assert all(stage.state == (stage.kind == "deploy") for stage in stages.values())
    assert all(Path(stage.placement["store"]).is_absolute() for stage in stages.values())


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [
        (["where.train.workers=2", "where.train.blind_workers=1"], {"train": 2, "train-blind": 1}),
        (["where.train.workers=2", "where.train.blind_workers=null"], {"train": 2, "train-blind": 2}),
        (
            ["where.train.workers=[1,2]", "where.train.blind_workers=null"],
            {"train": [1, 2], "train-blind": [1, 2]},
        ),
    ],
)
def test_the_blind_baseline_takes_workers_of_its_own_where_they_are_named(overrides: list[str], workers: Any):
    stages = {stage.name: stage for stage in build_stages(load_recipe("quickstart", overrides))}
    assert {name: stages[name].placement["train"]["workers"] for name in workers} == workers


@pytest.mark.parametrize(
    "override",
    [
        "where.train.workers=1",
        "where.train.blind_workers=2",
        "where.train.zero_stage=3",
        "where.store=elsewhere",
        "where.ray.object_store_mb=512",
        "where.ray.address=http://head:8265",
        "where.data.workers=1",
        "where.serve.port=9000",
        "where.retries=0",
    ],
)
def test_where_a_run_executes_re_runs_nothing(override: str):
    assert changed(override) == set()


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("evaluate.batch_size=32", {"evaluate", "report"}),
        ("evaluate.frame_tolerance=2", {"evaluate", "report"}),
        ("train.learning_rate=1e-3", TRAINED),
        ("model.fusion.layers=2", TRAINED),
        ("pack.text_tokens=512", {"pack", *TRAINED}),
        ("model.tokenizer.train_bpe.vocab_size=600", {"pack", *TRAINED}),
        ("deploy.max_new_tokens=16", {"deploy"}),
        ("report.gallery=3", {"report"}),
        ("data.sources.live.fps=1.0", {"clean-live", "pack", *TRAINED}),
        ("data.sources.vqa.make.test_rows=24", {"corpus-vqa", "clean-vqa", "pack", *TRAINED}),
        ("evaluate.baselines=[]", {"train-blind", "evaluate", "report"}),
        ("name=other", set()),
    ],
)
def test_a_setting_re_runs_what_it_decides_and_what_follows(override: str, stages: set[str]):
    assert changed(override) == stages


def test_the_seed_decides_everything_that_is_random():
    assert changed("seed=1") == set(fingerprints())


def raw_folder(root: Path) -> Path:
    folder = root / "raw"
    (folder / "images").mkdir(parents=True)
    (folder / "rows.parquet").write_bytes(b"rows")
    (folder / "images" / "1.png").write_bytes(b"picture")
    return folder


def with_path(folder: Path, store: Path) -> str:
    overrides = [f"data.sources.vqa={{reader: finevision, path: {folder}}}", f"where.store={store}"]
    return fingerprints(*overrides, store=store)["clean-vqa"]


def test_raw_files_are_identified_by_content_wherever_and_whenever_they_lie(tmp_path: Path):
    here, there = raw_folder(tmp_path / "a"), raw_folder(tmp_path / "b")
    first = with_path(here, tmp_path / "store")
    os.utime(there / "rows.parquet", (1, 1))
    assert with_path(there, tmp_path / "store") == first
    assert with_path(here, tmp_path / "store") == first  # from the cache of hashes


@pytest.mark.parametrize("change", ["content", "name", "extra"])
def test_raw_files_that_changed_are_another_input(tmp_path: Path, change: str):
    folder = raw_folder(tmp_path)
    before = with_path(folder, tmp_path / "store")
    if change == "content":
        (folder / "rows.parquet").write_bytes(b"ROWS")
    elif change == "name":
        (folder / "rows.parquet").rename(folder / "other.parquet")
    else:
        (folder / "more.parquet").write_bytes(b"")
    assert with_path(folder, tmp_path / "store") != before


def test_a_clean_stage_reads_its_path_without_hashing_it(tmp_path: Path):
    source = f"data.sources.vqa={{reader: finevision, path: {raw_folder(tmp_path)}}}"
    recipe = load_recipe("quickstart", [source, f"where.store={tmp_path}/s"])
    clean = next(stage for stage in build_stages(recipe) if stage.name == "clean-vqa")
    assert clean.location == {"path": str(tmp_path / "raw")}
    assert clean.settings["raw"]["files"] == 2
    assert clean.inputs == {}


def test_a_path_that_holds_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no raw data"):
        with_path(tmp_path / "nothing", tmp_path / "store")


def test_further_checkpoints_of_the_endpoint_count_by_their_content(tmp_path: Path):
    folder, store = tmp_path / "other", f"where.store={tmp_path}/s"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    overrides = (store, f"deploy.models={{other: {folder}}}")
    before = fingerprints(*overrides)
    assert {name for name in before if before[name] != fingerprints(store)[name]} == {"deploy"}
    deploy = next(one for one in build_stages(load_recipe("quickstart", overrides)) if one.name == "deploy")
    assert json.loads(deploy.location[MODEL_FOLDERS]) == {"other": str(folder)}
    assert len(deploy.settings["deploy"]["models"]["other"]["digest"]) == 64
    (folder / "config.json").write_text("{ }")
    assert fingerprints(*overrides)["deploy"] != before["deploy"]


def test_a_further_checkpoint_that_is_none_or_has_the_models_own_name_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="is not a checkpoint"):
        fingerprints(f"deploy.models={{other: {tmp_path}}}")
    with pytest.raises(ConfigError, match="the name of the run's own model"):
        fingerprints(f"deploy.models={{casa-quickstart: {tmp_path}}}")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_endpoint_is_where_the_deploy_stage_looks_for_it(host: str, url: str):
    recipe = load_recipe("quickstart", [f"where.serve.host='{host}'"])
    assert endpoint_of(recipe.where) == url
