"""``casa compare`` and ``casa score`` as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.tables import open_tables
from tests.support.evaluate.results import write_evaluation
from tests.support.evaluate.tables import drawn_rows, write_own

RIGHT = {"a": "rrrrrrwwrr", "b": "rwwrwwwrrw"}
"""Right and wrong answers of two models to ten questions."""


def casa(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "140"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    tables = open_tables(own_benchmark(write_own(tmp_path / "data", drawn_rows(10))))
    for name, pattern in RIGHT.items():
        write_evaluation(
            tmp_path / name,
            tables,
            lambda at, question, right=pattern: question.truth.answers[0] if right[at] == "r" else "none",
            name=name,
        )
    return tmp_path / "a", tmp_path / "b"


def test_two_evaluations_are_compared_in_a_table_and_on_a_page(folders: tuple[Path, Path]):
    printed = casa("compare", *folders)
    for shown in (
        "80.0",
        "40.0",
        "+40.0",
        "0.2188",
        "McNemar, exact",
        "checkpoint fingerprint: aaaaaaaa and bbbb",
    ):
        assert shown in printed
    page = folders[0] / "against-b.html"
    assert str(page) in printed
    assert page.read_text().count("data:image/jpeg") == 6, "each changed question has its picture"


def test_scripts_get_json(folders: tuple[Path, Path], tmp_path: Path):
    found = json.loads(casa("compare", *folders, "--json", "--output", tmp_path / "page.html"))
    assert (found["a"], found["b"], found["page"]) == ("a", "b", str(tmp_path / "page.html"))
    [one] = found["benchmarks"]
    assert (one["better"], one["worse"], one["p_value"]) == (5, 1, 14 / 64)
    assert one["changed"] == ["7", "1", "2", "4", "5", "9"]
    assert one["facts"]["checkpoint name"] == ["a", "b"]
    assert (tmp_path / "page.html").is_file()


def test_what_cannot_be_compared_is_refused(folders: tuple[Path, Path], tmp_path: Path):
    assert "holds no result" in casa("compare", folders[0], tmp_path / "nowhere", code=2)
    tables = open_tables(own_benchmark(tmp_path / "data" / "drawn.yaml"), most=9)
    write_evaluation(tmp_path / "c", tables, lambda at, question: "red")
    assert "The first are 10, the second 9." in casa("compare", folders[0], tmp_path / "c", code=2)


def test_answers_are_scored_anew(folders: tuple[Path, Path]):
    file = folders[0] / "drawn" / "result.json"
    older = json.loads(file.read_text())
    older["score"] |= {"value": 1.0, "version": "0"}
    file.write_text(json.dumps(older))
    assert "`casa score FOLDER`" in casa("compare", *folders, code=2)
    assert "Drawn: 80.0 % by exact_match" in casa("score", folders[0])
    assert (folders[0] / "index.html").is_file()
    assert "+40.0" in casa("compare", *folders)
    assert "Drawn: 80.0 %" in casa("score", folders[0] / "drawn")
    assert "holds no results" in casa("score", folders[0].parent / "data", code=2)
