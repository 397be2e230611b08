"""Cleaning, without Ray: plans, single records, single shards."""

from __future__ import annotations

import hashlib
import json

import pytest
from PIL import Image as PILImage

from casa_core.errors import ConfigError
from casa_core.types import Image, Sample, Text
from pipelines.data import clean
from pipelines.data.clean import clean_record, clean_shard, plan
from pipelines.data.files import Files
from pipelines.data.quarantine import Rejected, read_quarantine
from pipelines.data.readers import RawMedia, Record
from pipelines.data.readers.finevision import FineVisionReader
from pipelines.data.readers.live_whisperx import LiveWhisperXReader
from pipelines.data.store import CleanReader
from tests.support.data_corpus import PICTURE, finevision_row, live_record, write_finevision, write_jsonl
from tests.support.data_media import counting_video, encode, png_claiming, scene

ANSWER = Text(role="assistant", text="yes", trained=True)


def picture_record(*pictures: bytes) -> Record:
    parts = (*(Image(media=n) for n in range(len(pictures))), ANSWER)
    return Record(
        file="train-0.parquet",
        row=5,
        sample=Sample(source="s", sample_id="train-0/5", parts=parts),
        media=tuple(RawMedia(kind="image", data=data, name=f"{n}.png") for n, data in enumerate(pictures)),
        meta={"subset": "x"},
    )


def clip_record(video: bytes, *times: float) -> Record:
    parts = tuple(Image(role="assistant", timestamp=time) for time in times)
    return Record(
        file="train.jsonl",
        row=5,
        sample=Sample(source="s", sample_id="train/5", parts=(*parts, ANSWER)),
        media=(RawMedia(kind="video", data=video, name="clip.mp4"),),
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return counting_video(tmp_path_factory.mktemp("clean") / "clip.mp4")


def test_pictures_keep_their_bytes_and_gain_sizes_and_hashes():
    turned = PILImage.Exif()
    turned[0x0112] = 6
    second = encode(PILImage.fromarray(scene()), "JPEG", exif=turned)
    row = clean_record(picture_record(PICTURE, second))
    assert isinstance(row, dict)
    assert [(m["kind"], m["bytes"], m["height"], m["width"], m["sha256"]) for m in row["media"]] == [
        ("image", PICTURE, 24, 40, hashlib.sha256(PICTURE).hexdigest()),
        ("image", second, 40, 24, hashlib.sha256(second).hexdigest()),  # upright
    ]
    assert json.loads(row["meta"]) == {"subset": "x"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"<html>", "not_an_image"),
        (PICTURE[: len(PICTURE) // 2], "truncated_image"),
        (png_claiming(50_000, 50_000), "decompression_bomb"),
    ],
)
def test_a_record_with_one_bad_picture_is_rejected_with_its_hash(data, reason):
    result = clean_record(picture_record(PICTURE, data))
    assert isinstance(result, Rejected)
    assert (result.reason, result.file, result.row, result.sample_id) == (
        reason,
        "train-0.parquet",
        5,
        "train-0/5",
    )
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert result.detail.startswith("1.png: ")


def test_videos_are_decoded_at_every_time_used(video):
    row = clean_record(clip_record(video, 0.0, 3.9))
    assert isinstance(row, dict)
    assert (row["media"][0]["kind"], row["media"][0]["width"], row["media"][0]["height"]) == ("video", 64, 64)
    for data, times, reason in [
        (b"", (0.0,), "empty_file"),
        (b"nothing", (0.0,), "not_a_video"),
        (video, (0.0, 9.0), "truncated_video"),
        (video[: len(video) * 2 // 3], (0.0, 3.9), "truncated_video"),
    ]:
        result = clean_record(clip_record(data, *times))
        assert isinstance(result, Rejected)
        assert result.reason == reason


def test_the_plan_cuts_shards_by_records_and_by_bytes(tmp_path, monkeypatch):
    for n in range(3):
        write_finevision(
            tmp_path / f"train-{n}.parquet", [finevision_row() for _ in range(10)], row_group_size=4
        )
    write_finevision(tmp_path / "test-0.parquet", [finevision_row()])
    reader = FineVisionReader(files=Files(str(tmp_path)), source="s")

    def shards():
        return [(task.name, task.records) for task in plan(reader)]

    assert shards() == [("train-00000", 30), ("test-00000", 1)]
    monkeypatch.setattr(clean, "RECORDS_PER_SHARD", 12)
    assert shards() == [("train-00000", 10), ("train-00001", 10), ("train-00002", 10), ("test-00000", 1)]
    monkeypatch.setattr(clean, "BYTES_PER_SHARD", 1)
    assert [count for _, count in shards()] == [4, 4, 2] * 3 + [1]


def test_a_source_without_training_records_is_refused(tmp_path):
    write_finevision(tmp_path / "test-0.parquet", [finevision_row()])
    with pytest.raises(ConfigError, match="no training records"):
        plan(FineVisionReader(files=Files(str(tmp_path)), source="s"))


def test_a_shard_holds_every_record_or_its_rejection(tmp_path):
    rows = [finevision_row(), finevision_row(images=[b"junk"]), finevision_row(turns=[]), finevision_row()]
    write_finevision(tmp_path / "corpus" / "train-0.parquet", rows)
    reader = FineVisionReader(files=Files(str(tmp_path / "corpus")), source="s")
    (task,) = plan(reader)
    (tmp_path / ".reports").mkdir()
    report = clean_shard(reader, task, tmp_path)
    assert (report.rows, report.bytes, report.media) == (2, 2 * len(PICTURE), {"image": 2})
    assert report.rejected.by_reason() == {"missing_text": 1, "not_an_image": 1}
    listed = read_quarantine(tmp_path / ".reports" / "train-00000.parquet")
    assert [(entry.row, entry.reason) for entry in listed] == [(1, "not_an_image"), (2, "missing_text")]
    shards = [{"file": "train-00000.arrow", "rows": 2}]
    (tmp_path / "card.json").write_text(json.dumps({"splits": {"train": {"rows": 2, "shards": shards}}}))
    assert [row["sample_id"] for row in CleanReader(tmp_path, "train")] == ["train-0/0", "train-0/3"]


def test_a_finished_shard_is_not_made_again(tmp_path):
    write_finevision(tmp_path / "corpus" / "train-0.parquet", [finevision_row(), finevision_row(turns=[])])
    reader = FineVisionReader(files=Files(str(tmp_path / "corpus")), source="s")
    (task,) = plan(reader)
    (tmp_path / ".reports").mkdir()
    first = clean_shard(reader, task, tmp_path)
    (tmp_path / "corpus" / "train-0.parquet").unlink()
    assert clean_shard(reader, task, tmp_path) == first


def test_clips_that_share_a_video_keep_their_own_times(tmp_path, video):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "clip.mp4").write_bytes(video)
    records = [
        live_record(start=0.0, end=2.0),
        live_record(start=2.0, end=4.0, words=[(2.2, 2.4, "and")]),
        live_record(start=9.0, end=11.0, words=[]),
    ]
    write_jsonl(tmp_path / "corpus" / "train.jsonl", records)
    reader = LiveWhisperXReader(files=Files(str(tmp_path / "corpus")), source="live")
    (task,) = plan(reader)
    (tmp_path / ".reports").mkdir()
    report = clean_shard(reader, task, tmp_path)
    assert report.rows == 2
    assert report.rejected.by_reason() == {"truncated_video": 1}
    shards = [{"file": "train-00000.arrow", "rows": 2}]
    (tmp_path / "card.json").write_text(json.dumps({"splits": {"train": {"rows": 2, "shards": shards}}}))
    first, second = CleanReader(tmp_path, "train")
    assert first["media"][0]["sha256"] == second["media"][0]["sha256"]
    assert [part["timestamp"] for part in second["parts"] if part["kind"] == "image"] == [2.0, 2.5, 3.0, 3.5]
