"""A judge is asked once about each pair in each order, and its verdicts are counted as they are."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import ConfigError, DataError
from pipelines.cli.shared.judge import state_cost
from pipelines.evaluate.benchmarks.layout.tables import DataFile
from pipelines.evaluate.benchmarks.streams.livesports import LIVESPORTS
from pipelines.evaluate.judge.baseline import Baseline, read_baseline
from pipelines.evaluate.judge.client import KEY, Judge
from pipelines.evaluate.judge.judging import Court, account, counts, judge_rows, points
from pipelines.evaluate.judge.wording import verdict
from pipelines.evaluate.tables import Piece, TableQuestions
from pipelines.storage import retry
from tests.support.evaluate.judge_server import (
    A,
    B,
    RunningJudge,
    likes_longer,
    likes_the_first,
    running_judge,
)
from tests.support.paths import ROOT

ROWS = [
    {"index": at, "question_id": f"v_{at}", "answer": "goal " * (at + 1), "truths": [f"goal {at}"]}
    for at in range(6)
]
"""Answers of 5 to 30 letters."""
THIRD = Baseline("third", {row["question_id"]: "save " * 3 for row in ROWS})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No wait is long; those that there were."""
    waits: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return waits


def court(judge: RunningJudge, folder: Path, baseline: Baseline | None = THIRD, name: str = "m") -> Court:
    return Court(judge=Judge(judge.url, name, at_once=2), store=folder, baseline=baseline)


def test_a_judge_that_looks_at_the_order_only_gives_half_and_contradicts_itself(
    tmp_path: Path,
):
    with running_judge(likes_the_first) as judge:
        own = court(judge, tmp_path)
        found = judge_rows(own, ROWS)
    assert points(found) == dict.fromkeys(range(6), 0.5)
    said = account(own, found)["counts"]
    assert (said["pairs"], said["disagreements"], said["won"], said["lost"]) == (6, 6, 6, 6)


def test_a_judge_that_looks_at_the_commentaries_gives_what_they_deserve(tmp_path: Path):
    with running_judge(likes_longer) as judge:
        own = court(judge, tmp_path)
        found = judge_rows(own, ROWS)
        assert points(found) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
        said = account(own, found)["counts"]
        assert {name: said[name] for name in ("won", "lost", "ties", "unreadable", "disagreements")} == {
            "won": 6, "lost": 4, "ties": 2, "unreadable": 0, "disagreements": 0,
        }  # fmt: skip
        assert (said["asked"], said["completion_tokens"]) == (12, 108)
        assert {(body["temperature"], body["seed"]) for body in judge.bodies} == {(0, 42)}
        assert all("---Human Commentary---\ngoal " in prompt for prompt in judge.asked)


def test_against_the_persons_own_words_they_are_one_of_the_two_and_no_measure(tmp_path: Path):
    with running_judge(likes_longer) as judge:
        judge_rows(court(judge, tmp_path, None), ROWS)
        assert all("uman" not in prompt and prompt.count("goal 3") < 2 for prompt in judge.asked)


def test_what_was_asked_is_not_asked_again_and_another_text_or_judge_is(tmp_path: Path):
    with running_judge(likes_longer) as judge:
        first = judge_rows(court(judge, tmp_path), ROWS)
        again = judge_rows(court(judge, tmp_path), ROWS)
        assert judge.asked.total() == 12
        assert [one.reply for one in again] == [one.reply for one in first]
        assert all(one.reused for one in again)
        assert counts(again)["asked"] == 0
        judge_rows(court(judge, tmp_path), [ROWS[0] | {"answer": "other"}, *ROWS[1:]])
        assert judge.asked.total() == 14
        judge_rows(court(judge, tmp_path, name="n"), ROWS)
        assert judge.asked.total() == 26
    assert len(list(tmp_path.rglob("*.parquet"))) <= 4, "replies are merged"


def test_a_run_that_ended_early_goes_on_and_asks_each_pair_once(tmp_path: Path):
    with running_judge(likes_longer) as judge:
        judge.most = 5
        with pytest.raises(ConfigError, match="no credit"):
            judge_rows(court(judge, tmp_path), ROWS)
        judge.most = None

        def stop(done: int, total: int) -> None:
            if done == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            judge_rows(court(judge, tmp_path), ROWS, stop)
        found = judge_rows(court(judge, tmp_path), ROWS)
        assert set(judge.asked.values()) == {1}
        assert judge.asked.total() == 12
    assert points(found) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}


def test_a_run_that_was_killed_asks_again_what_was_in_flight_and_nothing_else(tmp_path: Path):
    child: list[subprocess.Popen[bytes]] = []

    def kill_at_the_fifth(a: str, b: str) -> str:
        if child and judge.asked.total() == 5:
            child.pop().kill()
        return likes_longer(a, b)

    with running_judge(kill_at_the_fifth) as judge:
        child.append(subprocess.Popen([sys.executable, "-c", CHILD, judge.url, str(tmp_path)], cwd=ROOT))
        assert child[0].wait(60) == -signal.SIGKILL
        found = judge_rows(court(judge, tmp_path), ROWS)
        assert sorted(judge.asked.values()) == [1] * 11 + [2]
    assert points(found) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}


CHILD = """
import sys
from pathlib import Path
from pipelines.evaluate.judge.judging import judge_rows
from tests.evaluate.test_judge import ROWS, THIRD, Court, Judge
judge_rows(Court(judge=Judge(sys.argv[1], "m", at_once=1), store=Path(sys.argv[2]), baseline=THIRD), ROWS)
"""


def test_a_busy_judge_is_asked_again_after_as_long_as_it_says(tmp_path: Path, at_once: list[float]):
    with running_judge(likes_longer) as judge:
        soon = formatdate(time.time() + 50, usegmt=True)
        waits = ("7", soon, "99999", "some time")
        judge.refusals = [(503, {}), *((429, {"Retry-After": wait}) for wait in waits)]
        Judge(judge.url, "m").check()
    first, second, third, fourth, fifth = sorted(at_once)
    assert (third, fifth) == (7.0, retry.MOST_WAIT_S)
    assert 45 < fourth < 51
    assert 0 < first <= second < 7, "those that say nothing"


def test_a_judge_that_is_late_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.evaluate.judge.client.TIMEOUT_S", 0.3)
    late = threading.Event()

    def late_once(a: str, b: str) -> str:
        if not late.is_set():
            late.set()
            threading.Event().wait(0.6)
        return likes_longer(a, b)

    with running_judge(late_once) as judge:
        found = judge_rows(Court(judge=Judge(judge.url, "m", 1), store=tmp_path, baseline=THIRD), ROWS)
        assert points(found) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
        assert judge.asked.total() == 13


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (400, 1), (429, 8)])
def test_a_judge_that_refuses_is_an_error_that_says_what_it_said(
    tmp_path: Path, status: int, tries: int, at_once: list[float]
):
    with running_judge(likes_longer) as judge:
        judge.refusals = [(status, {})] * 20
        with pytest.raises(ConfigError, match=f"answers {status}: .*busy"):
            Judge(judge.url, "m").check()
        assert len(judge.refusals) == 20 - tries


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "no address", "http://127.0.0.1:9999999"])
def test_a_judge_that_is_not_there_is_an_error(url: str):
    with pytest.raises(ConfigError, match="cannot be asked"):
        Judge(url, "m").check()


def test_its_key_comes_from_the_environment_and_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(KEY, "top-secret")
    with running_judge(likes_longer) as judge:
        own = court(judge, tmp_path)
        assert "top-secret" not in json.dumps(account(own, judge_rows(own, ROWS)))
        assert judge.keys == {"Bearer top-secret"}
        assert "top-secret" not in repr(own)


def test_a_reply_that_cannot_be_read_is_counted_and_never_guessed(tmp_path: Path):
    replies = itertools.cycle(["I cannot say.", "", "Commentary C", "42"])
    with running_judge(lambda a, b: next(replies)) as judge:
        found = judge_rows(court(judge, tmp_path), ROWS)
    assert set(points(found).values()) == {0.0}
    assert (counts(found)["unreadable"], counts(found)["lost"]) == (12, 0)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (A, "A"),
        (B, "B"),
        ("b", "B"),
        ("**A**.", "A"),
        ("Commentary A is clearly better than Commentary B.", "A"),
        ("Commentary B's details match, so Commentary B is better.", "B"),
        ("I prefer commentary B", "B"),
        ("Tie", "tie"),
        ("Commentary A and Commentary B are equally good.", "tie"),
        ("Neither is better.", "tie"),
        ("Commentary A is not better.", ""),
        ("Commentary A is better. Commentary B is better.", ""),
        ("Commentary A, then Commentary B", ""),
        ("A dog", ""),
        ("", ""),
    ],
)
def test_a_reply_is_read_by_the_written_rule(reply: str, said: str):
    assert verdict(reply) == said


def test_a_baseline_is_read_from_livecc_s_file_and_must_be_about_the_same_events(tmp_path: Path):
    file = tmp_path / "GPT-4o.jsonl"
    lines: list[dict[str, Any]] = [{"video_id": "v", "event_id": at, "pred": f"said {at}"} for at in range(5)]
    file.write_text("\n".join(map(json.dumps, lines)))
    baseline = read_baseline(file)
    assert (baseline.name, baseline.texts["v_3"]) == ("GPT-4o", "said 3")
    with running_judge(likes_longer) as judge:
        with pytest.raises(DataError, match=r"no commentary for 1 of 6 questions(.|\n)*v_5"):
            judge_rows(court(judge, tmp_path, baseline), ROWS)
        assert not judge.asked
    for content in ("", "[1]", '{"video_id": 1}', "no json"):
        file.write_text(content)
        with pytest.raises(DataError, match="baseline"):
            read_baseline(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_baseline(tmp_path / "nowhere")


def test_the_cost_is_two_calls_a_question():
    own = Court(judge=Judge("http://x", "m"), store=Path("x"), baseline=THIRD)
    calls, tokens = own.cost(1500)
    assert calls == 3000
    assert 1_000_000 < tokens < 2_000_000


@pytest.mark.parametrize(
    ("terminal", "yes", "confirms"), [(True, False, 1), (True, True, 0), (False, False, 0)]
)
def test_on_a_terminal_the_cost_is_confirmed(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, yes: bool, confirms: int
):
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text, abort: asked.append(text))
    own = Court(judge=Judge("http://x", "m"), store=Path("x"))
    table = TableQuestions(benchmark=LIVESPORTS, root="x", pieces=(Piece("", DataFile("x", "x"), 0, 0, 9),))
    state_cost(own, [table], 2, yes=yes)
    assert len(asked) == confirms
