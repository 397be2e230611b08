"""What a stage says of its progress reaches its log."""

from __future__ import annotations

import pytest

from pipelines.dag.progress import Progress, ProgressPrinter, parse_progress


def printed(capsys: pytest.CaptureFixture[str]) -> list[Progress | None]:
    return [parse_progress(line) for line in capsys.readouterr().out.splitlines()]


def test_a_short_step_does_not_hide_the_long_one_after_it(capsys: pytest.CaptureFixture[str]):
    report = ProgressPrinter(interval_s=3600)
    report(0, 3, "collecting")
    report(1, 3, "starting")
    assert printed(capsys) == [Progress(0, 3, "collecting"), Progress(1, 3, "starting")]


def test_many_small_steps_are_few_lines_the_last_one_among_them(capsys: pytest.CaptureFixture[str]):
    report = ProgressPrinter(interval_s=3600)
    for done in range(1001):
        report(done, 1000, f"{done} rows")
    lines = printed(capsys)
    assert 2 <= len(lines) <= 22
    assert lines[-1] == Progress(1000, 1000, "1000 rows")
