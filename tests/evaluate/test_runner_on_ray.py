"""The same answers from any number of workers on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_core.engine.requests import SamplingParams
from pipelines.evaluate.kept.answers import AnswerStore, model_fingerprint
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.runner import answer_all
from tests.support.evaluate.questions import Drawn, expected
from tests.support.own_ray import own_ray

SOURCE = Drawn(count=30, unreadable=11)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with own_ray(4):
        yield


@pytest.mark.slow
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
