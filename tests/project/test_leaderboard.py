"""The page of results is that of the committed files, and two results are compared number by number."""

from __future__ import annotations

import json

import pytest

from benchmarks import leaderboard
from benchmarks.measure import RESULTS


def test_the_page_is_that_of_the_committed_results():
    assert leaderboard.PAGE.read_text() == leaderboard.page(), "python -m benchmarks.leaderboard"


def test_every_line_names_its_date_machine_and_command():
    lines = leaderboard.page().splitlines()[6:]
    assert len(lines) == len(leaderboard.HEADLINES)
    for line, (name, what, _) in zip(lines, leaderboard.HEADLINES, strict=True):
        data = json.loads((RESULTS / f"{name}.json").read_text())
        assert line.startswith(f"| {what} | ")
        assert data["date"] in line
        assert f"`{data['command']}`" in line


def test_two_results_are_compared_number_by_number():
    before = {"command": "c", "date": "2026-01-01", "a": 10.0, "same": [1, 2], "b": {"x": 2.0}, "gone": 1}
    after = {"command": "c", "date": "2026-02-01", "a": 10.1, "same": [1, 2], "b": {"x": 3.0}, "new": 1}
    said = leaderboard.compared(before, after)
    assert "date: 2026-01-01 | 2026-02-01" in said
    assert "command" not in said
    assert "1 of 4 numbers differ by more than 2%" in said
    assert "| b.x | 2 | 3 | +50.0% |" in said
    assert "In one of them only: gone, new" in said


@pytest.mark.parametrize("arguments", [["one.json"], ["a", "b", "c"]])
def test_one_result_alone_cannot_be_compared(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        leaderboard.main(arguments)
    assert ended.value.code == 2
    assert "two results beside each other" in capsys.readouterr().out
