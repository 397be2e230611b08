"""The examples run: a notebook's cells one after the other, on a small checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

QUESTIONS = ["what color is the shape?", "what shape is in the image?", "is there a red shape?"]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_its_first_cell_to_its_last(
    path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CASA_MODEL", str(tiny_checkpoint))
    monkeypatch.chdir(path.parent)
    cells = json.loads(path.read_text())["cells"]
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # none is stored: what it prints depends on the model
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    printed = capsys.readouterr().out  # an untrained model says anything, line breaks among it
    assert [question for question in QUESTIONS if f"{question} →" in printed] == QUESTIONS
    assert re.findall(r"(?m)^ ?(\d\.\d) s  ", printed) == [f"{time / 2:.1f}" for time in range(8)]
