"""Questions are answered once each, the same in any company, and what is known is not asked again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from casa_core.engine.engine import Engine
from casa_core.engine.requests import SamplingParams, StreamSettings
from casa_core.errors import StoreError
from casa_core.media.decode import decode_images
from casa_core.types import Image, Text
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.kept.answers import Answer, AnswerStore, answer_key, model_fingerprint
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.runner import answer_all
from pipelines.evaluate.worker import AnswerWorker
from tests.support.core.engine import png
from tests.support.data.media import counting_video
from tests.support.evaluate.questions import Drawn, expected

SAMPLING = SamplingParams(max_new_tokens=6)
SOURCE = Drawn(count=23)


def model(folder: Path, **more: Any) -> Model:
    values = {"folder": folder, "digest": "", "fingerprint": model_fingerprint(folder), "sampling": SAMPLING}
    return Model(**{**values, **more})


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path) -> dict[str, str]:
    return expected(tiny_checkpoint, SOURCE, SAMPLING.max_new_tokens)


@pytest.mark.parametrize(("slots", "chunk"), [(1, 1), (1, 8), (2, 5), (16, 32)])
def test_each_question_is_answered_as_it_is_alone(
    tiny_checkpoint: Path, tmp_path: Path, alone: dict[str, str], slots: int, chunk: int
):
    own = model(tiny_checkpoint, slots=slots)
    rows = answer_all(own, {"drawn": SOURCE}, AnswerStore(tmp_path, own.fingerprint), chunk=chunk)
    assert {row["question_id"]: row["answer"] for row in rows} == alone
    assert [row["index"] for row in rows] == list(range(23))
    assert len(set(alone.values())) > 5


def test_what_is_known_is_not_asked_again_and_empty_answers_are(
    tiny_checkpoint: Path, tmp_path: Path, alone: dict[str, str]
):
    own = model(tiny_checkpoint)
    store = AnswerStore(tmp_path, own.fingerprint)
    first = answer_all(own, {"drawn": SOURCE}, store, chunk=4)
    assert not any(row["reused"] for row in first)
    assert len(list(tmp_path.rglob("*.parquet"))) == 1, "what was written meanwhile is one file in the end"
    again = answer_all(own, {"other name": SOURCE}, AnswerStore(tmp_path, own.fingerprint))
    assert [row["reused"] for row in again] == [bool(alone[row["question_id"]].strip()) for row in again]
    same = ("question_id", "answer", "prompt_tokens", "completion_tokens", "key")
    assert [[row[name] for name in same] for row in again] == [[row[name] for name in same] for row in first]


def test_a_run_that_ends_early_leaves_what_it_had(tiny_checkpoint: Path, tmp_path: Path):
    own = model(tiny_checkpoint)
    seen: list[Any] = []

    def stop(rows: Any) -> None:
        seen.extend(rows)
        if len(seen) >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_all(own, {"drawn": SOURCE}, AnswerStore(tmp_path, own.fingerprint), chunk=4, on_rows=stop)
    known = AnswerStore(tmp_path, own.fingerprint).read()
    assert set(known) == {row["key"] for row in seen if row["answer"].strip()}


def test_rows_that_cannot_be_asked_or_answered_say_why_and_are_asked_again(
    tiny_checkpoint: Path, tmp_path: Path
):
    own, source = model(tiny_checkpoint), Drawn(count=12, unreadable=5, broken=4)
    for _ in range(2):
        rows = answer_all(own, {"drawn": source}, AnswerStore(tmp_path, own.fingerprint))
        failed = {row["question_id"]: row["error"] for row in rows if row["error"]}
        assert set(failed) == {"q1", "q6", "q11", "q0", "q4", "q8"}
        assert failed["q1"] == "The row has no question."
        assert "image" in failed["q4"].lower()
        assert not any(row["reused"] for row in rows if row["error"])


def test_an_answer_is_known_by_everything_it_depends_on_and_by_nothing_else():
    sample = Drawn(count=1)._sample(0)
    key = answer_key("m", sample, SAMPLING)
    assert answer_key("m", replace(sample, source="x", sample_id="y"), SAMPLING) == key
    picture, text = sample.parts
    assert isinstance(text, Text)
    others = [
        ("n", sample, SAMPLING, "offline"),
        ("m", sample, SAMPLING, "streaming"),
        ("m", sample, SamplingParams(max_new_tokens=7), "offline"),
        ("m", replace(sample, parts=(text, picture)), SAMPLING, "offline"),
        ("m", replace(sample, parts=(Image(data=png(1)), text)), SAMPLING, "offline"),
        ("m", replace(sample, parts=(Image(), text)), SAMPLING, "offline"),
        ("m", replace(sample, parts=(picture, Text(role="user", text="what?"))), SAMPLING, "offline"),
        ("m", replace(sample, parts=(Text(role="system", text=""), *sample.parts)), SAMPLING, "offline"),
    ]
    keys = {answer_key(*other) for other in others}
    assert len(keys) == len(others)
    assert key not in keys


def test_a_checkpoint_with_another_byte_or_type_is_another_model(tiny_checkpoint: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    known = model_fingerprint(tiny_checkpoint, dtype="fp32")
    assert model_fingerprint(copy, dtype="fp32") == known
    assert model_fingerprint(copy, dtype="bf16") != known
    (copy / "processor_config.json").write_text((copy / "processor_config.json").read_text() + " ")
    assert model_fingerprint(copy, dtype="fp32") != known


def test_a_store_of_many_runs_gives_each_answer_once(tmp_path: Path):
    answer = Answer(text="red", finish_reason="stop", prompt_tokens=1, image_tokens=2, completion_tokens=3)
    for key in ("a", "b", "a"):
        AnswerStore(tmp_path, "m" * 40).add([(key, answer)])
    AnswerStore(tmp_path, "n" * 40).add([("c", answer)])
    assert AnswerStore(tmp_path, "m" * 40).read() == {"a": answer, "b": answer}


def test_a_video_is_watched_as_a_whole_or_frame_by_frame_as_a_live_stream_is(
    tiny_checkpoint: Path, tmp_path: Path
):
    source = Drawn(count=4, video=counting_video(tmp_path / "v.mp4"))
    whole, watched = (
        AnswerWorker(model(tiny_checkpoint, mode=mode), {"drawn": source}, AnswerStore(tmp_path, "m"))(
            pa.Table.from_pylist([{"benchmark": "drawn", "start": 0, "stop": 4}])
        ).to_pylist()
        for mode in ("offline", "streaming")
    )
    assert not any(row["error"] for row in (*whole, *watched))
    assert {row["question_id"]: row["answer"] for row in whole} == expected(tiny_checkpoint, source, 6)
    engine = Engine.from_pretrained(tiny_checkpoint)
    for row, question in zip(watched, source.read(0, 4), strict=True):
        assert isinstance(question, Question)
        shown = [part for part in question.sample.parts if isinstance(part, Image)]
        stream = engine.open_session(settings=StreamSettings(max_tokens_per_frame=1, max_tokens_per_prompt=6))
        for frame, picture in zip(shown, decode_images(question.sample), strict=True):
            stream.push_frame(picture, frame.timestamp or 0.0)
        assert row["answer"] == stream.prompt(row["prompt"]).text.strip()
        stream.close()


def test_a_checkpoint_that_cannot_be_loaded_ends_the_run_and_is_no_fault_of_a_question(tmp_path: Path):
    own = Model(folder=tmp_path / "none", digest="", fingerprint="x" * 64)
    with pytest.raises(StoreError, match="not a finished checkpoint"):
        answer_all(own, {"drawn": SOURCE}, AnswerStore(tmp_path / "answers", own.fingerprint))
