"""A run without a terminal says every few seconds how far each stage is, or that nothing has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli.show import watch
from pipelines.dag.plan import PlannedStage
from pipelines.dag.progress import Progress
from tests.support.dag.planned import planned_stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> PlannedStage:
    monkeypatch.setattr(watch, "PLAIN_EVERY_S", 0.1)
    return planned_stage("train", "train", Path("train"))


def lines_until(capsys: pytest.CaptureFixture[str], there: Callable[[list[str]], bool]) -> list[str]:
    """What is printed until it holds, for ten seconds at the most."""
    lines: list[str] = []
    end = time.monotonic() + 10
    while not there(lines) and time.monotonic() < end:
        time.sleep(0.05)
        lines += capsys.readouterr().out.splitlines()
    assert there(lines), lines
    return lines


def test_a_stage_that_says_nothing_yet_is_named_with_its_time(
    stage: PlannedStage, capsys: pytest.CaptureFixture[str]
):
    with watch.PlainWatcher([stage]) as watcher:
        watcher.started(stage, "train-1", attached=False)
        first, second, *_ = lines_until(capsys, lambda lines: len(lines) > 1)
    assert first == "train  started  (train-1)"
    assert second.startswith("train  starting, after 0")


def test_progress_is_told_once_as_news_and_then_with_its_age(
    stage: PlannedStage, capsys: pytest.CaptureFixture[str]
):
    with watch.PlainWatcher([stage]) as watcher:
        watcher.started(stage, "train-1", attached=False)
        watcher.progressed(stage, Progress(3, 4, "loss 0.5"))
        lines = lines_until(capsys, lambda lines: len(lines) > 2)
    assert lines[1] == "train   75%  loss 0.5"
    assert lines[2].startswith("train   75%  loss 0.5, after ")


def test_a_stage_that_has_ended_is_silent(stage: PlannedStage, capsys: pytest.CaptureFixture[str]):
    with watch.PlainWatcher([stage]) as watcher:
        watcher.started(stage, "train-1", attached=False)
        watcher.finished(stage, {"summary": {"headline": "4 steps"}}, cached=False)
        watcher.progressed(stage, Progress(4, 4, "late"))
        time.sleep(0.8)
    _, last = capsys.readouterr().out.splitlines()
    assert last.startswith("train  done in 0")


def test_a_closed_pipe_is_raised_where_the_run_can_end(stage: PlannedStage, monkeypatch: pytest.MonkeyPatch):
    with watch.PlainWatcher([stage]) as watcher:
        watcher.started(stage, "train-1", attached=False)
        monkeypatch.setattr(watcher, "_print", _closed)
        with pytest.raises(BrokenPipeError):
            _go_on(watcher, stage)


def _go_on(watcher: watch.PlainWatcher, stage: PlannedStage) -> None:
    for number in range(200):
        watcher.progressed(stage, Progress(number, 200, "loss 0.5"))
        time.sleep(0.05)


def _closed(stage: PlannedStage, text: str) -> None:
    raise BrokenPipeError
