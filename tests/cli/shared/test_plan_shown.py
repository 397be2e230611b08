"""A plan as people read it: a table, a tree, a drawing."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines.cli.show.plan import drawing, show_plan
from pipelines.dag import artifact
from pipelines.dag.plan import PlannedStage, StageSpec, plan

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def planned(tmp_path: Path) -> list[PlannedStage]:
    """Data for two stages; the data are there, and one of the two was made with another setting."""

    def stages(rate: float) -> list[PlannedStage]:
        specs = [
            StageSpec(name="data", kind="k", settings={}, function="m:f"),
            StageSpec(name="train", kind="k", settings={"rate": rate}, function="m:f", inputs={"d": "data"}),
            StageSpec(name="eval", kind="k", settings={}, function="m:f", inputs={"d": "data", "t": "train"}),
            StageSpec(name="serve", kind="k", settings={"on": 1}, function="m:f", inputs={"t": "train"}),
        ]
        return plan(specs, tmp_path, {"k": "1"})

    for stage in stages(0.1)[:2]:
        artifact.begin(stage.folder)
        identity = {
            "fingerprint": stage.fingerprint,
            "kind": "k",
            "what": stage.spec.settings,
            "inputs": {role: folder.name for role, folder in stage.inputs.items()},
            "code_version": "1",
        }
        artifact.commit(stage.folder, identity, {}, {"stage": stage.name})
    return stages(0.2)


def test_the_tree_has_each_stage_in_full_once_below_what_needs_it(
    planned: list[PlannedStage], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    show_plan(planned, as_json=False, tree=True)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "eval  → run  new input from train",
        "└── train  → run  changed: rate: 0.1 → 0.2",
        "    └── data  ✓ done  made by an earlier run",
        "serve  → run  new input from train",
        "└── train (above)",
    ]


@pytest.mark.parametrize(("columns", "fingerprints"), [("120", True), ("40", False)])
def test_the_table_leaves_out_fingerprints_before_reasons(
    columns: str,
    fingerprints: bool,
    planned: list[PlannedStage],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", columns)
    show_plan(planned, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert (planned[0].fingerprint[:12] in shown) == fingerprints
    assert "changed: rate:" in shown


def test_the_drawing_shows_what_changed_from_what_to_what(planned: list[PlannedStage]):
    root = ElementTree.fromstring(drawing(planned, "<r>"))
    assert root.get("aria-label") == "plan of <r>: 3 of 4 to run"
    boxes = [
        (group.find(f"{SVG}rect"), [text.text for text in group.findall(f"{SVG}text")])
        for group in root.findall(f"{SVG}g")
    ]
    words = [text for _, text in boxes]
    assert ["train", "rate", "0.1 → 0.2"] in words
    assert ["data", "made by an earlier run"] in words
    styles = [rect.get("class") for rect, _ in boxes if rect is not None]
    assert styles == ["box box-done", "box box-run", "box box-run", "box box-run"]
    assert len(root.findall(f"{SVG}path")) == 3, "data reaches eval through train"
