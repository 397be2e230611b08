"""An evaluation that is killed again and again ends with the answers of one that was left alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.processes import MARK, end_session
from pipelines.evaluate.kept.files import RESULT, SAMPLES
from pipelines.evaluate.results import read_result
from tests.support.evaluate.tables import drawn_rows, write_own
from tests.support.paths import ROOT

PROGRAM = """
import sys
from pipelines.evaluate import runner
runner.KEPT_EVERY_S = 0.2
from pipelines.cli.app import main
main()
"""
QUESTIONS = 600


def started(checkpoint: Path, own: Path, store: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, "evaluate", str(checkpoint), "--benchmarks", str(own)]
    return subprocess.Popen(
        [*command, "--store", str(store), "--name", "m", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a killed evaluation leaves of its Ray ends by itself, but only minutes later."""
    session = uuid.uuid4().hex
    monkeypatch.setenv(MARK, session)
    yield
    end_session(session, tmp_path / "no folder")


def kept(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("answers/*/*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(), ("--slots", "1"), ("--workers", "1"), ("--workers", "2"), ("--workers", "4")]
)
def test_five_kills_change_nothing(tiny_checkpoint: Path, tmp_path: Path, options: tuple[str, ...]):
    rows = drawn_rows(QUESTIONS)
    own = write_own(tmp_path / "own", random.Random(1).sample(rows, len(rows)))
    assert started(tiny_checkpoint, own, tmp_path / "alone").wait() == 0
    store, chance = tmp_path / "killed", random.Random(repr(options))
    for _ in range(5):
        process, before = started(tiny_checkpoint, own, store, *options), kept(store)
        while process.poll() is None and kept(store) == before:
            time.sleep(0.05)
        time.sleep(chance.random())
        process.kill()
        process.wait()
    assert started(tiny_checkpoint, own, store, *options).wait() == 0
    alone, healed = (folder / "evaluations" / "m" / "drawn" for folder in (tmp_path / "alone", store))
    assert (healed / SAMPLES).read_bytes() == (alone / SAMPLES).read_bytes()
    assert read_result(healed).score == read_result(alone).score
    assert read_result(healed).throughput.asked < QUESTIONS, f"{RESULT}: what was known was not asked again"
