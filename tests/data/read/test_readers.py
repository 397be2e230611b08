"""Readers find in a corpus what its layout promises, and say of everything else what is wrong with it."""

from __future__ import annotations

import json
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.errors import ConfigError, DataError
from casa_core.types import Image, Text
from pipelines.data.read import READERS, Record, open_reader
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader, words_by_frame
from pipelines.data.read.formats.lines import RECORDS_PER_SPAN
from pipelines.recipe.data import Source
from tests.support.data.corpus import (
    PICTURE,
    finevision_row,
    live_record,
    read_all,
    reasons,
    write_finevision,
    write_jsonl,
)

# FineVision


def test_a_conversation_keeps_its_order_and_trains_on_the_answers(tmp_path):
    turns = [("what is it?", "a ramp"), ("which way?", "up")]
    write_finevision(tmp_path / "train-0.parquet", [finevision_row(images=[PICTURE, PICTURE], turns=turns)])
    (record,) = read_all(FineVisionReader, tmp_path)
    assert isinstance(record, Record)
    assert record.sample.parts == (
        Image(media=0),
        Image(media=1),
        Text(role="user", text="what is it?"),
        Text(role="assistant", text="a ramp", trained=True),
        Text(role="user", text="which way?"),
        Text(role="assistant", text="up", trained=True),
    )
    assert [media.data for media in record.media] == [PICTURE, PICTURE]


def test_ratings_may_be_null_or_their_columns_absent(tmp_path):
    rated = finevision_row(relevance_ratings=[5, 4], relevance_min=4, formatting_ratings=None)
    write_finevision(tmp_path / "train-0.parquet", [rated, finevision_row()])
    plain = pa.Table.from_pylist([{k: finevision_row()[k] for k in ("images", "texts", "source")}])
    pq.write_table(plain, tmp_path / "train-1.parquet")
    metas = [record.meta for record in read_all(FineVisionReader, tmp_path)]
    ratings = {"relevance_ratings": [5, 4], "relevance_min": 4}
    assert metas == [{"subset": "ramps", **ratings}, {"subset": "ramps"}, {"subset": "ramps"}]


def test_the_kind_of_question_is_taken_from_the_subset(tmp_path):
    write_finevision(tmp_path / "train-0.parquet", [finevision_row(source="easy-vqa/yes_no")])
    (record,) = read_all(FineVisionReader, tmp_path)
    assert record.meta == {"subset": "easy-vqa/yes_no", "question_type": "yes_no"}


def test_text_without_pictures_is_a_sample_unless_it_asks_for_one(tmp_path):
    rows = [
        finevision_row(images=[]),
        finevision_row(images=None),
        finevision_row(images=[], turns=[("<image>\nwhat is it?", "a ramp")]),
        finevision_row(turns=[("<image>\nwhat is it?", "a ramp")]),
    ]
    write_finevision(tmp_path / "train-0.parquet", rows)
    results = read_all(FineVisionReader, tmp_path)
    assert reasons(results) == [None, None, "missing_image", None]
    assert results[3].sample.parts[1] == Text(role="user", text="what is it?")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (finevision_row(images=[None]), "missing_image"),
        (finevision_row(images=[PICTURE, None]), "missing_image"),
        (finevision_row(turns=None), "missing_text"),
        (finevision_row(turns=[]), "missing_text"),
        (finevision_row(turns=[(None, "a ramp")]), "missing_text"),
        (finevision_row(turns=[("what is it?", None)]), "missing_text"),
        (finevision_row(turns=[("what is it?", "")]), "missing_text"),
    ],
)
def test_a_row_without_its_text_or_picture_is_rejected_with_its_place(tmp_path, row, reason):
    write_finevision(tmp_path / "train-0.parquet", [finevision_row(), row, finevision_row()])
    results = read_all(FineVisionReader, tmp_path)
    assert reasons(results) == [None, reason, None]
    rejected = results[1]
    assert (rejected.file, rejected.row, rejected.sample_id) == ("train-0.parquet", 1, "train-0/1")


def test_rows_are_numbered_through_all_row_groups(tmp_path):
    write_finevision(tmp_path / "a" / "train-0.parquet", [finevision_row()] * 5, row_group_size=2)
    results = read_all(FineVisionReader, tmp_path)
    assert [(record.file, record.row) for record in results] == [("a/train-0.parquet", n) for n in range(5)]
    assert len({record.sample.sample_id for record in results}) == 5


def test_broken_pages_cost_their_row_group_and_a_broken_footer_its_file(tmp_path):
    path = write_finevision(
        tmp_path / "train-0.parquet", [finevision_row() for _ in range(6)], row_group_size=3
    )
    data = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[begin : begin + 40] = b"\xff" * 40
    path.write_bytes(data)
    (tmp_path / "train-1.parquet").write_bytes(b"")
    (tmp_path / "train-2.parquet").write_bytes(data[: len(data) // 2])
    found = reasons(read_all(FineVisionReader, tmp_path))
    assert found == [None] * 3 + ["unreadable_rows"] * 3 + ["unreadable_file"] * 2


def test_a_file_of_another_layout_is_rejected_row_by_row(tmp_path):
    pq.write_table(pa.table({"question": ["a", "b"]}), tmp_path / "train-0.parquet")
    results = read_all(FineVisionReader, tmp_path)
    assert reasons(results) == ["unreadable_rows"] * 2
    assert "no column images, texts" in results[0].detail


def test_splits_come_from_the_readme_or_from_file_names(tmp_path):
    write_finevision(tmp_path / "train-0.parquet", [finevision_row()])
    write_finevision(tmp_path / "more.parquet", [finevision_row()])
    write_finevision(tmp_path / "test-0.parquet", [finevision_row()])
    names = lambda split: [record.file for record in read_all(FineVisionReader, tmp_path, split)]  # noqa: E731
    assert names("train") == ["more.parquet", "train-0.parquet"]
    assert names("test") == ["test-0.parquet"]
    (tmp_path / "README.json").write_text(json.dumps({"splits": {"test": ["more.parquet"]}}))
    assert names("train") == []
    assert names("test") == ["more.parquet"]


# Live-WhisperX


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"a video")
    return tmp_path


def test_each_frame_is_followed_by_the_words_that_begin_before_the_next(clip):
    words = [(7.1, 7.3, "so"), (7.49, 7.8, "he"), (7.5, 7.6, " goes "), (8.9, 9.4, "up")]
    write_jsonl(clip / "train.jsonl", [live_record(start=7.0, end=9.0, words=words)])
    (record,) = read_all(LiveWhisperXReader, clip)
    said = [(7.0, "so he"), (7.5, "goes"), (8.0, ""), (8.5, "up")]
    parts = [Text(role="user", text="comment live")]
    for time, text in said:
        parts.append(Image(role="assistant", timestamp=time))
        parts.append(Text(role="assistant", text=text, trained=True))
    assert record.sample.parts == tuple(parts)
    assert [(media.kind, media.data, media.name) for media in record.media] == [
        ("video", b"a video", "clip.mp4")
    ]


def test_the_frame_rate_is_the_recipes(clip):
    write_jsonl(clip / "train.jsonl", [live_record(end=2.0)])
    (record,) = read_all(LiveWhisperXReader, clip, fps=4.0)
    times = [part.timestamp for part in record.sample.parts if isinstance(part, Image)]
    assert times == [n / 4 for n in range(8)]


def test_title_category_and_previous_may_be_absent(clip):
    full = live_record(previous="before", title="A walk", category="Sports")
    bare = live_record()
    for name in ("previous", "title"):
        del bare[0]["content"][1][name]
    write_jsonl(clip / "train.jsonl", [full, bare])
    first, second = read_all(LiveWhisperXReader, clip)
    place = {"video": "clip.mp4", "video_start": 0.0, "video_end": 2.0, "fps": 2.0}
    assert first.meta == place | {"previous": "before", "title": "A walk", "category": "Sports"}
    assert second.meta == place


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 9.99).map(lambda time: round(time, 3)), max_size=30),
    st.sampled_from([0.0, 2.1, 13.37, 3599.9]),
)
def test_no_word_is_lost_and_each_lies_in_its_frame(times, start):
    words = [(start + time, f"w{number}") for number, time in enumerate(sorted(times))]
    frames = words_by_frame(words, start, start + 10, 2.0)
    assert len(frames) == 20
    assert [word for frame in frames for word in frame] == [word for _, word in words]
    begins = {word: time for time, word in words}
    for number, frame in enumerate(frames):
        for word in frame:
            assert start + number / 2 - 1e-5 <= begins[word] < start + (number + 1) / 2 + 1e-5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "bad_json"),
        ("{}", "bad_record"),
        (live_record()[:1], "bad_record"),
        (live_record(start=2.0, end=2.0), "bad_record"),
        (live_record(start="0"), "bad_record"),
        (live_record(end=float("nan")), "bad_record"),
        (live_record(text=None), "bad_record"),
        (live_record(words=[(0.1, "hello")]), "bad_record"),
        (live_record(words=[("soon", 0.3, "hello")]), "bad_record"),
        (live_record(words=[(0.1, 0.3, None)]), "bad_record"),
        (live_record(words=[(5.0, 5.3, "late")]), "word_outside_clip"),
        (live_record(video="gone.mp4"), "missing_video"),
    ],
)
def test_a_line_that_breaks_the_layout_is_rejected_with_its_place(clip, line, reason):
    write_jsonl(clip / "train.jsonl", [live_record(), line, live_record()])
    results = read_all(LiveWhisperXReader, clip)
    assert reasons(results) == [None, reason, None]
    assert (results[1].file, results[1].row, results[1].sample_id) == ("train.jsonl", 1, "train/1")


def test_a_word_just_outside_the_clip_belongs_to_the_nearest_frame(clip):
    words = [(0.8, 1.1, "early"), (3.2, 3.3, "late")]
    write_jsonl(clip / "train.jsonl", [live_record(start=1.0, end=3.0, words=words)])
    (record,) = read_all(LiveWhisperXReader, clip)
    texts = [part.text for part in record.sample.parts if isinstance(part, Text)]
    assert texts == ["comment live", "early", "", "", "late"]


MANY = [live_record(title=f"clip {n}") for n in range(2 * RECORDS_PER_SPAN + 5)]
FOREIGN = [live_record(title="Größe 大" if n % 3 else "plain") for n in range(2 * RECORDS_PER_SPAN + 5)]


@pytest.mark.parametrize("records", [MANY[:1], MANY[:RECORDS_PER_SPAN], MANY, FOREIGN, FOREIGN[:2]])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("seeks", [True, False])
def test_records_are_found_with_byte_offsets_character_offsets_and_without(clip, records, ascii_only, seeks):
    write_jsonl(clip / "train.jsonl", records, seeks=seeks, ascii_only=ascii_only)
    results = read_all(LiveWhisperXReader, clip)
    assert [record.row for record in results] == list(range(len(records)))
    titles = [record[0]["content"][1]["title"] for record in records]
    assert [record.meta["title"] for record in results] == titles


def test_offsets_that_contradict_the_file_are_refused(clip):
    write_jsonl(clip / "train.jsonl", MANY[:5], seeks=[0, 10, 20, 30, 40])
    with pytest.raises(DataError, match="contradict the file"):
        read_all(LiveWhisperXReader, clip)
    write_jsonl(clip / "train.jsonl", MANY, seeks=False)
    lines = (clip / "train.jsonl").read_text().splitlines(keepends=True)
    offsets = [sum(len(line) for line in lines[:n]) for n in range(len(lines))]
    del lines[70]  # someone removed a record and kept the offsets
    (clip / "train.jsonl").write_text("".join(lines) + json.dumps(offsets))
    with pytest.raises(DataError, match="contradict the file"):
        read_all(LiveWhisperXReader, clip)


def test_a_download_that_was_cut_costs_its_last_record(clip):
    path = write_jsonl(clip / "train.jsonl", MANY[:4])
    body = path.read_text().splitlines(keepends=True)
    path.write_text("".join(body[:3]) + body[3][: len(body[3]) // 2])
    assert reasons(read_all(LiveWhisperXReader, clip)) == [None, None, None, "bad_json"]


# By name


def test_readers_are_chosen_by_name_and_refuse_settings_they_do_not_have(tmp_path):
    assert set(READERS) == set(get_args(Source.model_fields["reader"].annotation))
    reader = open_reader("live_whisperx", str(tmp_path), "live", {"fps": 4.0})
    assert (reader.source, reader.fps) == ("live", 4.0)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="finevision, image_text, live_whisperx"):
        open_reader("fine_vision", str(tmp_path), "vqa", {})
    with pytest.raises(ConfigError, match="fps"):
        open_reader("finevision", str(tmp_path), "vqa", {"fps": 2.0})


def test_a_corpus_may_lie_behind_a_uri(tmp_path):
    write_finevision(tmp_path / "train-0.parquet", [finevision_row()])
    local = open_reader("finevision", str(tmp_path), "vqa", {})
    remote = open_reader("finevision", f"file://{tmp_path}", "vqa", {})
    assert remote.spans("train") == local.spans("train")
    (record,) = remote.read(remote.spans("train")[0])
    assert isinstance(record, Record)
    with pytest.raises(ConfigError, match="nonsense"):
        open_reader("finevision", "nonsense://x", "vqa", {}).spans("train")
    with pytest.raises(DataError, match="cannot be listed"):
        open_reader("finevision", str(tmp_path / "nowhere"), "vqa", {}).spans("train")
