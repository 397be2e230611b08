"""Benchmarks about videos as they are watched, from their files to answers, on a tiny checkpoint."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from casa_core.engine.engine import Engine
from casa_core.engine.requests import SamplingParams, StreamSettings
from casa_core.media.decode import decode_images
from casa_core.types import Image
from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.benchmarks.streams.livesports import LIVESPORTS
from pipelines.evaluate.kept.answers import AnswerStore, model_fingerprint
from pipelines.evaluate.model_engine import Mode, Model
from pipelines.evaluate.runner import answer_all
from pipelines.evaluate.tables import TableQuestions, open_tables
from pipelines.evaluate.watching import prompt_text
from pipelines.evaluate.worker import AnswerWorker
from tests.support.data.media import counting_video
from tests.support.evaluate.benchmark_tables import rows
from tests.support.evaluate.checkpoint import TEXTS
from tests.support.evaluate.stream_tables import OVOBENCH
from tests.support.serve.checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a context that a commentator's query fits into."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", TEXTS, context=4096)


def write_csv(file: Path, content: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8-sig") as opened:
        writer = csv.DictWriter(opened, content[0])
        writer.writeheader()
        writer.writerows(content)


def write_video(file: Path) -> None:
    """Four seconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    counting_video(file, frames=16, fps=4)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> TableQuestions:
    """Twelve events of one video."""
    root = tmp_path_factory.mktemp("livesports")
    write_video(root / "videos" / "4hGQ.mp4")
    first = rows("livesports")[0]
    events = [
        first | {"event_id": at, "begin": at / 8, "end": at / 8 + 1.5, "event_title": f"red {at}"}
        for at in range(12)
    ]
    write_csv(root / "LiveSports-3K-CC-test.csv", events)
    return open_tables(LIVESPORTS, str(root))


def model(folder: Path, mode: Mode = "offline", slots: int = 3) -> Model:
    return Model(
        folder=folder,
        digest="",
        fingerprint=model_fingerprint(folder),
        sampling=SamplingParams(),
        slots=slots,
        mode=mode,
    )


def questions(source: TableQuestions) -> Iterator[Question]:
    for one in source.read(0, len(source)):
        assert isinstance(one, Question)
        yield one


def test_an_events_frames_are_captioned_live_and_its_commentary_is_all_they_get(
    checkpoint: Path, live: TableQuestions, tmp_path: Path
):
    found = answer_all(model(checkpoint), {"livesports": live}, AnswerStore(tmp_path, "m"))
    assert {row["error"] for row in found} == {""}
    engine = Engine.from_pretrained(checkpoint)
    for row, question in zip(found, questions(live), strict=True):
        query = prompt_text(question.sample)
        stream = engine.open_session(settings=StreamSettings(query=query, max_tokens_per_frame=16))
        times = [part.timestamp for part in question.sample.parts if isinstance(part, Image)]
        begin = row["index"] / 8
        assert times == [begin, begin + 0.5, begin + 1]
        pictures = zip(times, decode_images(question.sample), strict=True)
        captions = [stream.push_frame(picture, time or 0.0) for time, picture in pictures]
        stream.close()
        words = [caption.text.strip() for caption in captions]
        assert row["answer"] == " ".join(word for word in words if word)
        assert row["prompt"] == query
        assert row["completion_tokens"] == sum(len(caption.token_ids) for caption in captions)
    assert len({row["answer"] for row in found}) > 1


def test_a_commentary_is_the_same_in_either_mode_and_kept(
    checkpoint: Path, live: TableQuestions, tmp_path: Path
):
    store = AnswerStore(tmp_path, "m")
    first = answer_all(model(checkpoint), {"livesports": live}, store, chunk=5)
    again = answer_all(
        model(checkpoint, "streaming", slots=1), {"livesports": live}, AnswerStore(tmp_path, "m")
    )
    assert [row["answer"] for row in again] == [row["answer"] for row in first]
    assert [row["reused"] for row in again] == [bool(row["answer"].strip()) for row in first]


@pytest.fixture(scope="module")
def asked_at(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TableQuestions]:
    """StreamingBench and OVO-Bench, of questions at the third second."""
    root = tmp_path_factory.mktemp("asked")
    write_video(root / "data" / "real" / "sample_7" / "video.mp4")
    write_csv(
        root / "StreamingBench" / "Real_Time_Visual_Understanding.csv",
        [row | {"time_stamp": "00:00:03"} for row in rows("streamingbench")],
    )
    annotations = json.loads(json.dumps(OVOBENCH))
    for one in annotations:
        write_video(root / "src_videos" / one["video"])
        for at in one.get("test_info", [one]):
            at["realtime"] = 3
    (root / "ovo_bench_new.json").write_text(json.dumps(annotations))
    names = ("streamingbench", "ovobench")
    return {name: open_tables(CATALOGUE[name], str(root)) for name in names}


@pytest.mark.parametrize("mode", ["offline", "streaming"])
def test_a_question_at_a_time_is_answered_from_what_was_seen_by_then(
    checkpoint: Path, asked_at: dict[str, TableQuestions], tmp_path: Path, mode: Mode
):
    cut = tmp_path / "cut.mp4"
    counting_video(cut, frames=12, fps=4)  # the same, ended where the question is asked
    worker = AnswerWorker(model(checkpoint, mode), asked_at, AnswerStore(tmp_path, "m"))
    for name, source in asked_at.items():
        chunk = {"benchmark": name, "start": 0, "stop": len(source)}
        found = worker(pa.Table.from_pylist([chunk])).to_pylist()
        assert {row["error"] for row in found} == {""}
        assert len(found) == {"streamingbench": 3, "ovobench": 6}[name]
        first = next(questions(source))
        ended = replace(
            first.sample,
            parts=tuple(
                replace(part, data=cut.read_bytes()) if isinstance(part, Image) else part
                for part in first.sample.parts
            ),
        )
        short = AnswerWorker(
            model(checkpoint, mode),
            {name: _One(replace(first, sample=ended))},
            AnswerStore(tmp_path, "x"),
        )(pa.Table.from_pylist([chunk | {"stop": 1}])).to_pylist()
        assert short[0]["answer"] == found[0]["answer"]


class _One:
    """One question."""

    max_new_tokens = 16

    def __init__(self, question: Question) -> None:
        self._question = question

    def __len__(self) -> int:
        return 1

    def read(self, start: int, stop: int) -> Iterator[Question]:
        yield self._question


def test_more_videos_than_slots_are_watched_one_after_the_other(
    checkpoint: Path, asked_at: dict[str, TableQuestions], tmp_path: Path
):
    one, many = (
        answer_all(model(checkpoint, "streaming", slots), asked_at, AnswerStore(tmp_path / str(slots), "m"))
        for slots in (1, 16)
    )
    assert [row["answer"] for row in one] == [row["answer"] for row in many]
    assert {row["error"] for row in (*one, *many)} == {""}
