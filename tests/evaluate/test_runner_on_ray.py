"""The same answers from any number of workers on Ray."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_core.engine.requests import SamplingParams
from pipelines.evaluate.kept.answers import AnswerStore, model_fingerprint
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.runner import answer_all
from tests.support.evaluate.questions import Drawn, expected
from tests.support.evaluate.tables import drawn_rows, write_own
from tests.support.own_ray import own_ray
from tests.support.paths import ROOT

SOURCE = Drawn(count=30, unreadable=11)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with own_ray(4):
        yield


@pytest.mark.slow
@pytest.mark.filterwarnings("error::ray.util.annotations.RayDeprecationWarning")
def test_workers_on_ray_answer_as_one_here_does_and_reuse_what_is_known(
    local_ray: None, tiny_checkpoint: Path, tmp_path: Path
):
    own = Model(
        folder=tiny_checkpoint,
        digest="",
        fingerprint=model_fingerprint(tiny_checkpoint),
        sampling=SamplingParams(max_new_tokens=6),
    )
    alone = expected(tiny_checkpoint, SOURCE, 6)
    seen: list[str] = []
    for reused in (False, True):
        rows = answer_all(
            own,
            {"drawn": SOURCE},
            AnswerStore(tmp_path, own.fingerprint),
            workers=2,
            on_ray=True,
            chunk=4,
            on_rows=lambda new: seen.extend(row["question_id"] for row in new),
        )
        assert {row["question_id"]: row["answer"] for row in rows if not row["error"]} == alone
        assert [row["index"] for row in rows] == list(range(30))
        assert all(row["reused"] == (reused and bool(row["answer"].strip())) for row in rows if row["answer"])
    assert len(seen) == 60


@pytest.mark.slow
@pytest.mark.parametrize(("first", "code"), [("", 0), ("import ray", 1)])
def test_a_token_mode_meant_for_another_cluster_is_not_taken_over_and_a_lost_worker_is_told_in_words(
    tiny_checkpoint: Path, tmp_path: Path, first: str, code: int
):
    """Imported before the command has set its own mode, Ray keeps the token's: its workers cannot join."""
    own = write_own(tmp_path / "own", random.Random(1).sample(rows := drawn_rows(12), len(rows)))
    program = f"{first}\nfrom pipelines.cli.app import main\nmain()"
    command = [sys.executable, "-c", program, "evaluate", str(tiny_checkpoint), "--benchmarks", str(own)]
    ended = subprocess.run(
        [*command, "--store", str(tmp_path), "--name", "m", "--workers", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "COLUMNS": "120"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = ended.stdout + ended.stderr
    assert ended.returncode == code, printed
    assert ("Ray could not go on with the evaluation." in printed) == bool(code)
    assert "Every answer" in printed or code
    assert "Traceback (most recent call last) ─" not in printed
