"""Load comes at its planned times whatever the endpoint does, and every time counts from the plan."""

from __future__ import annotations

import json
import math
import threading
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from pipelines.bench.figures import figures
from pipelines.bench.observed import AskedAnswer, Frame, LiveView, Observed, percentile
from pipelines.bench.plan import Load, arrivals, draw_pictures
from pipelines.bench.run import observe
from pipelines.cli.app import app
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, running, settings_with


def nothing(seen: Observed) -> None:
    """No progress is shown."""


def test_arrivals_are_a_poisson_process_that_a_seed_fixes():
    times = arrivals(50.0, 100.0, "a")
    assert times == arrivals(50.0, 100.0, "a") != arrivals(50.0, 100.0, "b")
    assert times == sorted(times)
    assert all(0 < at < 100 for at in times)
    assert len(times) == pytest.approx(5000, abs=300)  # four standard deviations
    gaps = [after - before for before, after in pairwise(times)]
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.03)
    assert arrivals(0.0, 100.0, "a") == []


def test_pictures_are_all_different_and_the_same_for_a_seed():
    assert len(set(draw_pictures(3, count=20, side=64))) == 20
    assert draw_pictures(3, count=2, side=64) == draw_pictures(3, count=2, side=64)


class StalledEngine(FakeEngine):
    """Answers nothing before it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def step(self) -> list:
        self.released.wait(30)
        return super().step()


def test_no_call_waits_for_an_earlier_answer_and_latency_counts_from_the_plan():
    """While nothing is answered a closed loop would send nothing, and report the fast answers afterwards."""
    engine = StalledEngine()
    load = Load(rate=20, seconds=1.5, seed=1, drain=20)
    timer = threading.Timer(2.0, engine.released.set)
    with running(engine, settings_with(max_new_tokens=8, limits={"waiting_requests": 200})) as url:
        timer.start()
        began = time.monotonic()
        seen = observe(url, MODEL, load, nothing)
    timer.join()
    released = began + 2.0
    assert len(seen.answers) == len(load.answers_at) > 15
    assert {one.fate for one in seen.answers} == {"answered"}
    for one, at in zip(seen.answers, load.answers_at, strict=True):
        assert one.planned == seen.began + at
        assert one.sent < released, "it was sent though nothing had been answered"
        assert one.ended >= released - 0.1
        assert one.planned <= one.sent <= one.first <= one.ended
    found = figures(seen)
    assert found.answer.p50 > released - seen.began - load.seconds / 2 - 0.5
    assert found.first_token.p99 > 1.5


def test_a_call_that_the_generator_sends_late_still_counts_from_its_plan():
    one = AskedAnswer(planned=10.0, sent=13.0, first=13.5, ended=14.0, tokens=6, fate="answered")
    found = figures(Observed(began=10.0, seconds=5.0, ended=15.0, answers=[one]))
    assert found.first_token.p50 == 3.5
    assert found.answer.p50 == 4.0
    assert found.per_token.p50 == pytest.approx(0.1)
    assert found.sent_late.p95 == 3.0
    assert found.generator_was_slow


def test_frames_count_as_on_time_late_or_what_became_of_them_and_stalls_are_added_up():
    frames = [
        Frame(0.0, 0.5, ended=0.4, fate="answered", tokens=2),
        Frame(0.5, 1.0, ended=1.3, fate="answered", tokens=2),
        Frame(1.0, 1.5, fate="dropped"),
        Frame(1.5, 2.0, ended=2.25, fate="answered"),
        Frame(2.0, 2.5),
    ]
    view = LiveView(0.0, frames, "answered")
    found = figures(Observed(began=0.0, seconds=3.0, ended=3.0, sessions=[view, LiveView(1.0, [], "busy")]))
    assert found.frames == {"answered": 1, "late": 2, "dropped": 1, "waiting": 1}
    assert found.attainment == 0.2
    # Without words from 1.0 to 1.3, from 1.5 to 2.25 (the dropped frame's, then the next one's), from 2.5 on.
    assert found.underruns == 3
    assert found.stall_s == pytest.approx(0.3 + 0.75 + 0.5)
    assert found.sessions == {"answered": 1, "busy": 1}
    json.dumps(found.plain(), allow_nan=False)


def test_percentiles_are_values_that_occurred():
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 3.0
    assert percentile([1.0], 99) == 1.0
    assert math.isnan(percentile([], 50))


def test_what_the_endpoint_refuses_is_counted_by_its_code():
    limits = {"answers": 1, "waiting_requests": 1, "sessions": 1}
    load = Load(rate=20, streams=240, seconds=1, stream_seconds=2, drain=20, seed=2)
    with running(FakeEngine(delay_s=0.1), settings_with(max_new_tokens=8, limits=limits)) as url:
        found = figures(observe(url, MODEL, load, nothing))
    assert found.answers.keys() == {"answered", "overloaded"}
    assert found.sessions.keys() == {"answered", "too_many_sessions"}
    assert sum(found.sessions.values()) == len(load.sessions_at)


def test_what_has_not_ended_after_the_drain_is_given_up_and_counted():
    engine = StalledEngine()
    load = Load(rate=5, seconds=1, drain=0.5, seed=3)
    with running(engine, settings_with()) as url:
        began = time.monotonic()
        found = figures(observe(url, MODEL, load, nothing))
        assert time.monotonic() - began < 6
        engine.released.set()
    assert found.answers.keys() == {"waiting"}


def casa(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["bench", "serve", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_the_command_prints_a_table_and_leaves_json_and_a_page(tmp_path: Path):
    options = ("--rate", "6", "--streams", "120", "--seconds", "2", "--stream-seconds", "1", "--seed", "1")
    with running(FakeEngine(), settings_with(max_new_tokens=8)) as url:
        printed = casa(url, *options, "--output", str(tmp_path))
    load = Load(rate=6, streams=120, seconds=2, seed=1)
    assert "time to first token, P50 / P95 / P99" in printed
    assert f"{len(load.answers_at)} planned, {len(load.answers_at)} answered" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == MODEL
    assert result["answers"] == {"answered": len(load.answers_at)}
    assert result["sessions"] == {"answered": len(load.sessions_at)}
    assert sum(result["frames"].values()) == 2 * len(load.sessions_at)
    assert result["load"]["seed"] == 1
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 2
    for drawing in page.split("<svg")[1:]:
        ElementTree.fromstring(f"<svg{drawing.split('</svg>')[0]}</svg>")
    assert "http://" not in page.replace(url, "")


def test_json_is_for_scripts_and_a_missing_endpoint_a_sentence(tmp_path: Path):
    with running(FakeEngine(), settings_with(max_new_tokens=8)) as url:
        out = casa(url, "--rate", "4", "--seconds", "1", "--output", str(tmp_path), "--json")
    assert json.loads(out)["answers"].keys() <= {"answered"}
    assert "No endpoint answers at" in casa("http://127.0.0.1:9", code=1)
