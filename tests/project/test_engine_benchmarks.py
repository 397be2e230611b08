"""The engine's proofs run on a small model, and their figures are right; no timing is judged here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.engine import accuracy, concurrency, latency
from benchmarks.engine.concurrency import largest
from benchmarks.engine.live_figures import Figures, stalls_of
from benchmarks.engine.open_loop import Frame

SMALL = ("--hidden", "32", "--layers", "2", "--side", "32", "--context", "2048")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The benchmarks choose a number of threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_everything_together_says_what_each_says_alone_and_what_transformers_says(tmp_path: Path):
    sizes = ("--answers", "6", "--streams", "3", "--frames", "3", "--new", "6", "--words", "3")
    assert accuracy.main([*SMALL, *sizes, "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "engine_accuracy.json").read_text())
    assert found["verdict"] == "PASS"
    # Three frames and a prompt between them, for each of three streams.
    assert found["compared"]["streams: together, alone"]["tokens"] >= 3 * 4
    assert found["compared"]["answers: alone, transformers' generate"]["pairs"] == 6


def test_one_token_that_differs_is_found_and_named():
    mine, theirs = ([accuracy.Watched(tokens=[(1, 2), tokens])] for tokens in ((3, 4, 5), (3, 9)))
    found = accuracy.compare(mine, theirs)
    assert (found["tokens"], found["differing"]) == (5, 2)
    assert found["first difference"] == "number 0, turn 1, token 1: 4 and 9"


def test_times_stand_beside_the_floor_and_beside_moss_vl(tmp_path: Path):
    sizes = ("--frames", "4", "--rounds", "2", "--words", "3", "--new", "4", "--deadline", "60")
    assert latency.main([*SMALL, *sizes, "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "engine_latency.json").read_text())
    assert set(latency.MOSS_VL) <= set(found["seconds"])
    assert found["floor"]["share"] > 0
    page = (tmp_path / "engine_latency.md").read_text()
    assert "89 mean, 130 P95" in page
    assert page.rstrip().endswith("PASS")


def test_a_floor_that_is_not_reached_ends_in_fail(tmp_path: Path):
    sizes = ("--frames", "2", "--rounds", "1", "--words", "2", "--new", "4", "--floor", "1000")
    assert latency.main([*SMALL, *sizes, "--results", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "engine_latency.json").read_text())["verdict"] == "FAIL"


def test_live_streams_are_counted_frame_by_frame(tmp_path: Path):
    sizes = ("--streams", "1,2", "--answers", "1", "--seconds", "2", "--warm-up", "0.5", "--new", "4")
    easy = ("--deadline", "1", "--hold", "0")
    assert concurrency.main([*SMALL, *sizes, *easy, "--results", str(tmp_path)]) == 0
    one, two = json.loads((tmp_path / "engine_concurrency.json").read_text())["runs"]
    assert (one["streams"], two["streams"]) == (1, 2)
    for found in (one, two):
        assert abs(found["frames"] - 2 * 2 * found["streams"]) <= found["streams"]
        counted = (found[fate] for fate in ("on_time", "late", "dropped", "refused", "waiting"))
        assert found["frames"] == sum(counted)
    assert "158 / 59.0" in (tmp_path / "engine_concurrency.md").read_text()


@pytest.mark.slow
def test_the_former_way_and_the_disturbed_run_are_measured_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(concurrency, "MOST_STREAMS", 2)
    sizes = ("--streams", "2", "--answers", "1", "--seconds", "4", "--warm-up", "0.5", "--new", "4")
    concurrency.main([*SMALL, *sizes, "--baseline", "--disturb", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "engine_concurrency.json").read_text())
    assert set(found["largest"]) == {"one engine, one batch", "one at a time"}
    assert len(found["disturbance"]["outcomes"]) == 3


def frame(due: float, ended: float) -> Frame:
    return Frame(due - 0.5, due, ended, "waiting" if ended == math.inf else "answered")


def test_a_viewer_is_stalled_from_a_deadline_until_words_of_that_frame_or_a_newer_one_come():
    assert stalls_of([frame(1, 0.9), frame(2, 1.5)], 9) == []
    assert stalls_of([frame(1, 1.25), frame(2, 1.5)], 9) == [(1, 1.25)]
    dropped = [frame(1, math.inf), frame(2, 1.5), frame(3, 2.5)]
    assert stalls_of(dropped, 9) == [(1, 1.5)], "the newer frame's words ended it"
    assert stalls_of([frame(1, 3.5), frame(2, 3.7), frame(3, 3.8)], 9) == [(1, 3.8)], "one stall, not three"
    assert stalls_of([frame(1, 1.2), frame(2, math.inf)], 9) == [(1, 1.2), (2, 9)], "until the run's end"


def test_the_largest_number_of_streams_held_is_closed_in_upon():
    def run(count: int) -> Figures:
        found = Figures.__new__(Figures)
        object.__setattr__(found, "streams", count)
        object.__setattr__(found, "frames", 100)
        object.__setattr__(found, "on_time", 100 if count <= 23 else 50)
        return found

    tried = largest(run, 128)
    assert [one.streams for one in tried[:6]] == [1, 2, 4, 8, 16, 32]
    assert 21 <= concurrency.held(tried) <= 23
    assert concurrency.held(largest(run, 8)) == 8
