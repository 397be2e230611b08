"""A picture or video that several rows of a shard show is stored once, and every reader finds it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.processing.processor import CasaProcessor
from casa_core.types import Image, Sample, Text
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.clean import shards
from pipelines.data.pack import run as pack
from pipelines.data.read.formats.json_array import RECORDS_PER_SPAN, array_spans
from pipelines.data.read.source.files import Files
from pipelines.data.store import shard_writing
from pipelines.data.store.quarantine import read_quarantine
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import CLEAN_SCHEMA, CleanSample, Media
from pipelines.data.store.shard_pipeline import run_here
from pipelines.data.store.shard_writing import CARD, ShardFile, write_json
from pipelines.data.store.shared_media import SharedMedia
from pipelines.train.loader import SequenceReader
from tests.support.data.corpus import finevision_row, write_finevision
from tests.support.data.layouts import noisy_video, video_item, write_array
from tests.support.data.media import encode, scene
from tests.support.data.prepared import PACK
from tests.support.data.rows import row_of

QUESTIONS = 5


def ask(number: int) -> tuple[tuple[str, str], ...]:
    return (("human", f"<image>\nWhat happens, {number}?"), ("gpt", f"It brightens {number}."))


@pytest.fixture(scope="module")
def videos() -> dict[str, bytes]:
    return {name: noisy_video(frames=frames) for frames, name in ((40, "a.mp4"), (48, "b.mp4"))}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, videos) -> Path:
    """Open questions: five about a, two about b, then one about a again; and a choice about a."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "clips").mkdir()
    for name, data in videos.items():
        (root / "clips" / name).write_bytes(data)
    asked = ["a.mp4"] * QUESTIONS + ["b.mp4", "b.mp4", "a.mp4"]
    items = [video_item(f"clips/{name}", ask(number)) for number, name in enumerate(asked)]
    write_array(root / "x_oe.json", items)
    write_array(root / "x_mc.json", [video_item("clips/a.mp4", ask(99))])
    return root


def run_clean(reader: str, root: Path, output: Path) -> dict[str, Any]:
    what = {"source": "videos", "reader": reader, "path": str(root), "max_failures": 0.0}
    output.mkdir(parents=True)
    clean.clean_source(StageContext(name="clean", settings=what, placement={}, output=output), run_here)
    return json.loads((output / CARD).read_text())


@pytest.fixture(scope="module")
def cleaned(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("clean") / "videos"
    run_clean("llava_video", corpus, output)
    return output


def test_a_video_with_five_questions_is_in_the_shard_once(cleaned, videos):
    assert read_quarantine(cleaned / "quarantine.parquet") == []
    train = json.loads((cleaned / CARD).read_text())["splits"]["train"]
    assert train["rows"] == train["videos"] == QUESTIONS + 4
    # Names in order: the one choice of x_mc.json is a shard of its own here, and repeats its video.
    choice, questions = [(cleaned / shard["file"]).read_bytes() for shard in train["shards"]]
    assert [choice.count(video) for video in videos.values()] == [1, 0]
    assert [questions.count(video) for video in videos.values()] == [1, 1]
    stored = sum(map(len, videos.values()))
    assert stored < len(questions) < 1.2 * stored
    assert train["bytes"] == stored + len(videos["a.mp4"])
    assert train["shared"] == {
        "media": QUESTIONS + 3 - 2,
        "bytes": QUESTIONS * len(videos["a.mp4"]) + len(videos["b.mp4"]),
    }


def test_every_row_of_it_has_the_videos_bytes_size_and_hash(cleaned, videos):
    reader = CleanReader(cleaned, "train")
    for number, row in enumerate(reader):
        name = json.loads(row["meta"])["video"].removeprefix("clips/")
        (media,) = row["media"]
        assert media["bytes"] == reader.media(number, 0) == videos[name]
        assert media["sha256"] == hashlib.sha256(videos[name]).hexdigest()
        sample = CleanSample.from_row(row)
        assert sample.media[0].data == videos[name]
        assert (sample.media[0].width, sample.media[0].height) != (0, 0)
        assert reader.sample(number).media[0].sha256 == media["sha256"]
    everything = reader.media_of([(number, 0) for number in range(len(reader))])
    assert [len(data) for data in everything] == [len(row["media"][0]["bytes"]) for row in reader]
    with pytest.raises(IndexError, match="Row 1 has no media 1"):
        reader.media(1, 1)


def test_how_rows_travel_decides_nothing_about_the_bytes(corpus, cleaned, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RECORDS_PER_TABLE", 1)
    monkeypatch.setattr(shards, "BYTES_PER_TABLE", 1)
    run_clean("llava_video", corpus, tmp_path / "cut")
    for path in [*cleaned.glob("*.arrow"), cleaned / CARD]:
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()


def test_packing_and_training_read_it(cleaned, tmp_path):
    what = PACK | {
        "sources": ["videos"],
        "mixture": {},
        "filters": {},
        "video": {"text_tokens": 200, "image_tokens": 320},
        "max_failures": 0.0,
    }
    (tmp_path / "pack").mkdir()
    context = StageContext(
        name="pack", settings=what, placement={}, inputs={"videos": cleaned}, output=tmp_path / "pack"
    )
    pack.pack_sources(context, run_here)
    processor = CasaProcessor.from_pretrained(tmp_path / "pack" / "tokenizer")
    reader = SequenceReader(tmp_path / "pack", {"videos": cleaned}, processor)
    read = [reader.read(number) for number in range(len(reader.pack))]
    assert len({documents[0].sample_id for _, documents in read}) == QUESTIONS + 4
    assert all(sequence.patches_PE for sequence, _ in read)


def test_a_picture_with_several_questions_is_stored_once_too(tmp_path):
    from PIL import Image as PILImage

    picture = encode(PILImage.fromarray(scene(300, 400)), "PNG")
    rows = [finevision_row(images=[picture]) for _ in range(4)] + [finevision_row(images=[picture, picture])]
    write_finevision(tmp_path / "corpus" / "train-0.parquet", rows)
    card = run_clean("finevision", tmp_path / "corpus", tmp_path / "clean")
    train = card["splits"]["train"]
    assert (train["images"], train["bytes"], train["shared"]["media"]) == (6, len(picture), 5)
    reader = CleanReader(tmp_path / "clean", "train")
    assert [len(row["media"]) for row in reader] == [1, 1, 1, 1, 2]
    assert {media["bytes"] for row in reader for media in row["media"]} == {picture}


POOL = [bytes([65 + number]) * (number * 37 + 1) for number in range(6)]


@settings(deadline=None, max_examples=60)
@given(
    shown=st.lists(st.lists(st.integers(0, len(POOL) - 1), max_size=3), max_size=40),
    cut=st.integers(1, 9),
    batch_bytes=st.integers(1, 500),
)
def test_whatever_rows_share_each_content_is_stored_once_and_found_from_every_row(
    tmp_path_factory, shown, cut, batch_bytes
):
    def media(number: int) -> Media:
        digest = hashlib.sha256(POOL[number]).hexdigest()
        return Media(kind="image", data=POOL[number], width=1, height=1, sha256=digest)

    def sample(number: int, own: list[int]) -> Sample:
        images = tuple(Image(media=at) for at in range(len(own)))
        parts = (*images, Text(role="user", text=f"{number}"))
        return Sample(source="s", sample_id=f"s/{number}", parts=parts)

    rows = [row_of(sample(n, own), [media(at) for at in own], {}) for n, own in enumerate(shown)]
    folder = tmp_path_factory.mktemp("shared")
    shared = SharedMedia()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writing, "BYTES_PER_BATCH", batch_bytes)
        file = ShardFile(folder / "train-00000.arrow", CLEAN_SCHEMA)
        for start in range(0, len(rows), cut):
            batch = shared.share(pa.RecordBatch.from_pylist(rows[start : start + cut], schema=CLEAN_SCHEMA))
            file.add(batch, shards._media_bytes(batch))
        file.finish()
    listed = [{"file": "train-00000.arrow", "rows": len(rows)}]
    write_json(folder / CARD, {"splits": {"train": {"rows": len(rows), "shards": listed}}})
    reader = CleanReader(folder, "train")
    places = [(n, at) for n, own in enumerate(shown) for at in range(len(own))]
    wanted = [POOL[number] for own in shown for number in own]
    assert reader.media_of(places) == wanted
    file_bytes = (folder / "train-00000.arrow").read_bytes()
    for number in {number for own in shown for number in own if number > 1}:
        assert file_bytes.count(POOL[number]) == 1
    assert shared.count == len(wanted) - len(set(wanted))
    assert shared.bytes == sum(map(len, wanted)) - sum(map(len, set(wanted)))


def test_neighbours_about_one_video_share_a_span_and_count_its_bytes_once(tmp_path):
    names = [f"{number // 5}.mp4" for number in range(1000)]  # 64 is no multiple of 5
    write_array(tmp_path / "x_oe.json", [video_item(name) for name in names])
    spans = array_spans(Files(str(tmp_path)), ["x_oe.json"], 1000, key="video")
    assert [name for span in spans for name in names[span.start : span.stop]] == names
    assert all(names[span.stop - 1] != names[span.stop] for span in spans[:-1])
    assert {span.stop - span.start for span in spans[:-1]} == {65}
    assert all((span.bytes - (span.end - span.begin)) == 13 * 1000 for span in spans[:-1])


def test_a_video_with_very_many_questions_does_not_make_one_span_of_all(tmp_path):
    write_array(tmp_path / "x_oe.json", [video_item("a.mp4")] * 500)
    spans = array_spans(Files(str(tmp_path)), ["x_oe.json"], 1000, key="video")
    assert max(span.records for span in spans) == 2 * RECORDS_PER_SPAN
    assert sum(span.records for span in spans) == 500
