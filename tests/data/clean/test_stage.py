"""Cleaning, without Ray: plans, single records, single shards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image as PILImage
from PIL import JpegImagePlugin

from casa_core.errors import ClusterError, ConfigError, DataError
from casa_core.media.decode import decode_image
from casa_core.types import Image, Sample, Text
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.clean.records import DEFAULT_LIMITS, PictureLimits, clean_record
from pipelines.data.clean.run import plan
from pipelines.data.clean.shards import CleanShards, ShardReport, ShardTask
from pipelines.data.clean.shrink import shrunk_size
from pipelines.data.read import RawMedia, Reader, Record, Span
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from pipelines.data.read.source.files import Files
from pipelines.data.store.quarantine import Rejected, read_quarantine
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import CleanSample
from pipelines.data.store.shard_pipeline import Run, run_here, write_shards
from pipelines.storage.atomic import DIGESTS
from tests.support.data.corpus import PICTURE, finevision_row, live_record, write_finevision, write_jsonl
from tests.support.data.media import counting_video, encode, png_claiming, scene
from tests.support.paths import ROOT

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
    clean = clean_record(picture_record(PICTURE, second))
    assert isinstance(clean, CleanSample)
    assert [(m.kind, m.data, m.height, m.width, m.sha256) for m in clean.media] == [
        ("image", PICTURE, 24, 40, hashlib.sha256(PICTURE).hexdigest()),
        ("image", second, 40, 24, hashlib.sha256(second).hexdigest()),  # upright
    ]
    assert clean.meta == {"subset": "x"}


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
    clean = clean_record(clip_record(video, 0.0, 3.9))
    assert isinstance(clean, CleanSample)
    assert (clean.media[0].kind, clean.media[0].width, clean.media[0].height) == ("video", 64, 64)
    for data, times, reason in [
        (b"", (0.0,), "empty_file"),
        (b"nothing", (0.0,), "not_a_video"),
        (video, (0.0, 9.0), "truncated_video"),
        (video[: len(video) * 2 // 3], (0.0, 3.9), "truncated_video"),
    ]:
        result = clean_record(clip_record(data, *times))
        assert isinstance(result, Rejected)
        assert result.reason == reason


def clean_shard(reader: Reader, task: ShardTask, output: Path) -> ShardReport:
    """One shard, written in this process."""
    pipeline = CleanShards(reader, DEFAULT_LIMITS, output)
    ((_, report),) = write_shards(run_here, pipeline, {task.name: task}, output)
    return ShardReport.from_json(report)


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
    report = clean_shard(reader, task, tmp_path)
    assert (report.rows, report.bytes, report.media) == (2, len(PICTURE), {"image": 2})
    assert report.shared == {"media": 1, "bytes": len(PICTURE)}  # both show one picture
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
    first = clean_shard(reader, task, tmp_path)
    (tmp_path / "corpus" / "train-0.parquet").unlink()
    assert clean_shard(reader, task, tmp_path) == first


def test_clips_that_share_a_video_keep_their_own_times(tmp_path, video):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "clip.mp4").write_bytes(video)
    records = [
        live_record(start=0.0, end=2.0),
        live_record(start=2.0, end=4.0, words=[(2.2, 2.4, "and")]),
        live_record(start=9.0, end=11.0, words=[(9.1, 9.3, "end")]),
    ]
    write_jsonl(tmp_path / "corpus" / "train.jsonl", records)
    reader = LiveWhisperXReader(files=Files(str(tmp_path / "corpus")), source="live")
    (task,) = plan(reader)
    report = clean_shard(reader, task, tmp_path)
    assert report.rows == 2
    assert report.rejected.by_reason() == {"truncated_video": 1}
    shards = [{"file": "train-00000.arrow", "rows": 2}]
    (tmp_path / "card.json").write_text(json.dumps({"splits": {"train": {"rows": 2, "shards": shards}}}))
    first, second = CleanReader(tmp_path, "train")
    assert first["media"][0]["sha256"] == second["media"][0]["sha256"]
    assert [part["timestamp"] for part in second["parts"] if part["kind"] == "image"] == [2.0, 2.5, 3.0, 3.5]


# Pictures that are too large


def large(kind: str) -> bytes:
    rgb = PILImage.fromarray(scene(300, 500))
    turned = PILImage.Exif()
    turned[0x0112] = 6
    if kind == "turned JPEG":
        return encode(rgb, "JPEG", exif=turned, quality=95)
    if kind == "lossless WEBP":
        return encode(rgb, "WEBP", lossless=True)
    if kind == "transparent PNG":
        return encode(rgb.convert("RGBA"), "PNG")
    return encode(rgb, kind)


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        ("JPEG", "JPEG"),
        ("turned JPEG", "JPEG"),
        ("WEBP", "JPEG"),
        ("lossless WEBP", "PNG"),
        ("PNG", "PNG"),
        ("transparent PNG", "PNG"),
        ("TIFF", "PNG"),
    ],
)
def test_a_larger_picture_is_encoded_anew_at_the_area_asked_for_and_says_so(kind, becomes):
    data, kept = large(kind), PICTURE
    clean = clean_record(picture_record(kept, data), PictureLimits(shrink_above=200))
    assert isinstance(clean, CleanSample)
    first, second = clean.media
    assert first.data == kept
    assert second.data is not None
    small = PILImage.open(io.BytesIO(second.data))
    assert small.format == becomes
    pixels = decode_image(second.data)
    height, width = decode_image(data).shape[:2]
    assert pixels.shape[:2] == (second.height, second.width)
    assert 0.97 * 200**2 < second.height * second.width <= 200**2
    assert second.width / second.height == pytest.approx(width / height, rel=0.01)
    truth = PILImage.fromarray(decode_image(data)).resize(small.size, PILImage.Resampling.LANCZOS)
    assert np.abs(pixels.astype(int) - np.asarray(truth)).mean() < (1.5 if becomes == "JPEG" else 0.01)
    if becomes == "JPEG":
        assert isinstance(small, JpegImagePlugin.JpegImageFile)
        assert JpegImagePlugin.get_sampling(small) == 0  # 4:4:4, full colour resolution
    assert second.sha256 == hashlib.sha256(second.data).hexdigest()
    original = {"media": 1, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert clean.meta == {"subset": "x", "shrunk": [original]}


def test_bytes_are_kept_where_a_picture_is_not_larger_or_nothing_is_asked():
    data = large("PNG")
    for limits in (
        PictureLimits(),
        PictureLimits(shrink_above=388),
    ):  # 388 squared is a little more than 300 x 500
        clean = clean_record(picture_record(data), limits)
        assert isinstance(clean, CleanSample)
        assert clean.media[0].data == data
        assert "shrunk" not in clean.meta
    broken = clean_record(picture_record(data[: len(data) // 2]), PictureLimits(shrink_above=100))
    assert isinstance(broken, Rejected)
    assert broken.reason == "truncated_image"


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (4000, 1), (1, 4000), (7, 7), (3, 9000)])
def test_a_shrunk_size_keeps_to_its_area_and_never_vanishes(size):
    for side in (1, 5, 32, 200):
        width, height = shrunk_size(*size, side)
        assert 1 <= width * height <= max(side * side, 1)
        assert (width, height) == size or width * height > 0.5 * side * side or min(width, height) < 5


def test_more_pixels_than_a_source_allows_are_a_bomb_to_it():
    data = large("PNG")
    result = clean_record(picture_record(data), PictureLimits(max_pixels=300 * 500 - 1))
    assert isinstance(result, Rejected)
    assert result.reason == "decompression_bomb"
    assert isinstance(clean_record(picture_record(data), PictureLimits(max_pixels=300 * 500)), CleanSample)


# The stage, with a plain loop in place of Ray


def stage(
    output: Path, corpus: Path, max_failures: float = 0.0, run: Run = run_here, **what: Any
) -> dict[str, Any]:
    output.mkdir(parents=True, exist_ok=True)
    settings = {"source": "s", "reader": "finevision", "path": str(corpus), "max_failures": max_failures}
    context = StageContext(name="clean", settings=settings | what, placement={}, output=output)
    return clean.clean_source(context, run)


def card_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "card.json").read_text())


def test_the_card_counts_what_was_shrunk(tmp_path):
    rows = [finevision_row(images=[large("PNG"), PICTURE]), finevision_row(images=[large("JPEG")])]
    write_finevision(tmp_path / "corpus" / "train-0.parquet", rows)
    stage(tmp_path / "out", tmp_path / "corpus", shrink_above=100)
    train = card_of(tmp_path / "out")["splits"]["train"]
    before = len(large("PNG")) + len(large("JPEG"))
    assert train["shrunk"] == {"pictures": 2, "bytes_before": before}
    assert train["images"] == 3
    stage(tmp_path / "kept", tmp_path / "corpus")
    assert card_of(tmp_path / "kept")["splits"]["train"]["shrunk"] == {"pictures": 0, "bytes_before": 0}


def test_a_spent_budget_stops_at_once_and_what_was_found_stays_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "RECORDS_PER_SHARD", 10)
    for number in range(6):
        rows = [finevision_row(images=[b"junk"] if n < number else [PICTURE]) for n in range(10)]
        write_finevision(tmp_path / "corpus" / f"train-{number}.parquet", rows)
    with pytest.raises(DataError, match="6 of 60"):  # 0 + 1 + 2 + 3, of which 0.09 are 5
        stage(tmp_path / "out", tmp_path / "corpus", max_failures=0.09)
    listed = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert [(entry.file, entry.row) for entry in listed] == [
        ("train-1.parquet", 0), ("train-2.parquet", 0), ("train-2.parquet", 1),
        ("train-3.parquet", 0), ("train-3.parquet", 1), ("train-3.parquet", 2),
    ]  # fmt: skip
    assert not (tmp_path / "out" / "train-00004.arrow").exists()
    assert not (tmp_path / "out" / "card.json").exists()
    # With a larger budget the finished shards are taken as they are.
    finished = (tmp_path / "out" / "train-00000.arrow").stat().st_mtime_ns
    assert stage(tmp_path / "out", tmp_path / "corpus", max_failures=0.5)["quarantined"] == {
        "not_an_image": 15
    }
    assert (tmp_path / "out" / "train-00000.arrow").stat().st_mtime_ns == finished
    assert len(read_quarantine(tmp_path / "out" / "quarantine.parquet")) == 15


def test_what_a_worker_that_died_left_behind_is_no_part_of_the_artifact(tmp_path):
    write_finevision(tmp_path / "corpus" / "train-0.parquet", [finevision_row()])
    output = tmp_path / "out"

    def dying(*work: Any) -> Generator[tuple[str, bytes]]:
        (output / ".train-00000.arrow.4711").write_bytes(b"half a shard")  # and Ray has another worker do it
        return run_here(*work)

    stage(output, tmp_path / "corpus", run=dying)
    assert set(contents(output)) == {"card.json", "quarantine.parquet", "train-00000.arrow"}


def test_a_reader_that_gives_a_record_twice_and_another_not_at_all_is_noticed(tmp_path, monkeypatch):
    write_finevision(tmp_path / "train-0.parquet", [finevision_row() for _ in range(4)])
    reader = FineVisionReader(files=Files(str(tmp_path)), source="s")
    (task,) = plan(reader)
    whole = list(reader.read(task.spans[0]))

    class Confused(FineVisionReader):
        def read(self, span: Span) -> Iterator[Record | Rejected]:
            yield from (whole[0], whole[1], whole[1], whole[3])

    with pytest.raises(AssertionError, match="comes once"):
        clean_shard(Confused(files=Files(str(tmp_path)), source="s"), task, tmp_path)


@pytest.mark.parametrize(
    "place", ["pyarrow.parquet.ParquetFile.iter_batches", "PIL.ImageFile.ImageFile.load"]
)
def test_too_little_memory_stops_the_run_and_is_held_against_no_record(place, tmp_path, monkeypatch):
    write_finevision(tmp_path / "train-0.parquet", [finevision_row()])
    reader = FineVisionReader(files=Files(str(tmp_path)), source="s")
    (task,) = plan(reader)

    def exhausted(*_: Any, **__: Any) -> Any:
        raise pa.ArrowMemoryError("realloc of size 3072 failed")

    monkeypatch.setattr(place, exhausted)
    with pytest.raises(ClusterError, match="ran out of memory"):
        clean_shard(reader, task, tmp_path)
    assert not (tmp_path / "train-00000.arrow").exists()


def test_a_page_that_claims_more_memory_than_its_rows_can_take_is_damaged(tmp_path, monkeypatch):
    write_finevision(tmp_path / "train-0.parquet", [finevision_row()])
    reader = FineVisionReader(files=Files(str(tmp_path)), source="s")
    (task,) = plan(reader)

    def absurd(*_: Any, **__: Any) -> Any:
        raise pa.ArrowMemoryError("malloc of size 9223372036854775807 failed")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", absurd)
    assert clean_shard(reader, task, tmp_path).rejected.by_reason() == {"unreadable_rows": 1}


def test_corpora_of_some_size_are_cut_into_enough_shards_for_many_workers(tmp_path, monkeypatch):
    rows = [finevision_row() for _ in range(64)]
    write_finevision(tmp_path / "train-0.parquet", rows, row_group_size=1)
    reader = FineVisionReader(files=Files(str(tmp_path)), source="s")
    monkeypatch.setattr(clean, "SMALL_SHARD", 1)
    assert len(plan(reader)) == 64
    monkeypatch.setattr(clean, "SHARDS_AT_LEAST", 4)
    assert len(plan(reader)) in (4, 5)


# The stage on Ray, killed


def contents(folder: Path) -> dict[str, str]:
    """Hashes of an artifact's files, but for ``.digests``: there are times in it, and a commit removes it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != DIGESTS
    }


class Attempt:
    """The clean stage in a process of its own, with its own Ray."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / "settings.json"
        path.write_text(json.dumps(settings))
        command = [sys.executable, "-m", "tests.support.data.clean_worker", str(path)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def shards_done(self, count: int) -> None:
        """Waits until so many shards were reported done."""
        assert self.process.stdout is not None
        while count:
            line = self.process.stdout.readline()
            assert line, "the run ended before it could be killed"
            count -= " of " in line

    def kill(self) -> None:
        """SIGKILL for the driver, its Ray and its workers."""
        own = psutil.Process(self.process.pid)
        for process in [own, *own.children(recursive=True)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it followed its parent already
        self.process.communicate()

    def kill_one_worker(self) -> None:
        """SIGKILL for a process that cleans: Ray has to give its shard to another."""
        own = psutil.Process(self.process.pid)
        while True:
            assert self.process.poll() is None, "the run ended before a worker could be killed"
            for process in own.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # Ray starts and ends helpers all the time
                    if process.name().startswith("ray::ReadCleanS"):  # as Linux cuts the operator's name
                        process.kill()
                        return
            time.sleep(0.01)

    def end(self) -> None:
        output, _ = self.process.communicate(timeout=280)
        assert self.process.returncode == 0, output


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, Any]:
    """Cleaning of 336 records of 0.8 MB, some of them broken, in 36 shards."""
    corpus = tmp_path_factory.mktemp("killed") / "corpus"
    rng = np.random.default_rng(0)
    for number in range(4):
        rows = []
        for at in range(84):
            noise = PILImage.fromarray(rng.integers(0, 256, (540, 520, 3), dtype=np.uint8))
            data = encode(noise, "PNG", compress_level=0)
            rows.append(finevision_row(images=[data[: 400 * at] if at % 17 == 3 else data]))
        write_finevision(corpus / f"train-{number}.parquet", rows, row_group_size=10)
    what = {"source": "s", "reader": "finevision", "path": str(corpus), "max_failures": 0.2}
    return {"what": what, "workers": 1, "records_per_shard": 10}


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> dict[str, str]:
    """What one worker makes of it undisturbed; its private memory may grow by less than the corpus has, and
    the object store holds less, too."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = sum(path.stat().st_size for path in Path(settings["what"]["path"]).iterdir())
    assert corpus > 250 << 20
    Attempt(folder, settings | {"output": str(folder / "out"), "limit_mb": 240}).end()
    assert len(read_quarantine(folder / "out" / "quarantine.parquet")) == 20
    assert len(list((folder / "out").glob("train-*.arrow"))) == 36
    return contents(folder / "out")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [2, 4])
def test_with_any_number_of_workers_and_however_often_killed_the_bytes_are_the_same(
    workers, settings, whole, tmp_path
):
    rng = random.Random(workers)
    own = settings | {"workers": workers, "output": str(tmp_path / "out")}
    for _ in range(3):
        attempt = Attempt(tmp_path, own)
        attempt.shards_done(rng.randint(1, 5))
        time.sleep(rng.uniform(0, 0.5))
        attempt.kill()
        assert not (tmp_path / "out" / "card.json").exists()
    last = Attempt(tmp_path, own)
    last.shards_done(1)
    last.kill_one_worker()
    last.end()
    assert contents(tmp_path / "out") == whole
