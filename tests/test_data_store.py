"""Shards: written whole or not at all, read at random, refused when they are not what they should be."""

from __future__ import annotations

import json
import pickle

import pyarrow as pa
import pytest

from casa_core.errors import DataError, StoreError
from casa_core.types import Image, Sample, Text
from pipelines.data import store
from pipelines.data.quarantine import (
    QUARANTINE_SCHEMA,
    Rejected,
    check_budget,
    read_quarantine,
    write_quarantine,
)
from pipelines.data.rows import CLEAN_SCHEMA, Media, is_video, row_from_sample, sample_from_row
from pipelines.data.store import CleanReader, remove_leftovers, write_shard

CHAT = (
    Text(role="system", text="be brief"),
    Image(media=0),
    Image(media=1),
    Text(role="user", text="which is larger? größer?"),
    Text(role="assistant", text="", trained=True),
)
LIVE = (
    Text(role="user", text="say what you see"),
    Image(role="assistant", media=0, timestamp=0.0),
    Text(role="assistant", text="a bird", trained=True),
    Image(role="assistant", media=0, timestamp=0.5),
    Text(role="assistant", text="", trained=True),
)


def media(*contents: bytes, kind="image") -> list[Media]:
    return [Media(kind=kind, data=data, width=4, height=3, sha256=data.hex()) for data in contents]


def clean_row(number: int, contents=(b"one", b"two!"), parts=CHAT):
    sample = Sample(source="s", sample_id=f"a/b/{number}", parts=parts)
    return row_from_sample(sample, media(*contents), {"n": number, "größe": "大"})


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A clean artifact of two shards with small batches: 5 + 4 rows."""
    monkeypatch.setattr(store, "ROWS_PER_BATCH", 2)
    write_shard(tmp_path / "train-00000.arrow", CLEAN_SCHEMA, [clean_row(n) for n in range(5)])
    write_shard(tmp_path / "train-00001.arrow", CLEAN_SCHEMA, [clean_row(n) for n in range(5, 9)])
    (tmp_path / "card.json").write_text(json.dumps({"splits": {"train": {"rows": 9}}}))
    return tmp_path


@pytest.mark.parametrize("parts", [CHAT, LIVE])
def test_a_sample_survives_its_row(parts):
    sample = Sample(source="s", sample_id="x/y", parts=parts)
    contents = media(b"one", b"two") if parts is CHAT else media(b"video", kind="video")
    row = pa.RecordBatch.from_pylist([row_from_sample(sample, contents, {})], schema=CLEAN_SCHEMA)
    (stored,) = row.to_pylist()
    assert sample_from_row(stored, with_bytes=False) == sample
    full = sample_from_row(stored)
    data = [part.data for part in full.parts if isinstance(part, Image)]
    assert data == ([b"one", b"two"] if parts is CHAT else [b"video", b"video"])
    assert is_video(sample) is (parts is LIVE)


def test_rows_are_found_by_number_across_shards_and_batches(artifact):
    reader = CleanReader(artifact, "train")
    assert len(reader) == 9
    for number in (0, 1, 2, 4, 5, 8, 3):
        assert reader[number]["sample_id"] == f"a/b/{number}"
        assert json.loads(reader[number]["meta"]) == {"n": number, "größe": "大"}
        assert reader.media(number, 0) == b"one"
        assert reader.media(number, 1) == b"two!"
    for number in (-1, 9):
        with pytest.raises(IndexError):
            reader[number]
    with pytest.raises(IndexError):
        reader.media(0, 2)
    assert [row["sample_id"] for row in reader] == [f"a/b/{n}" for n in range(9)]


def test_layout_can_be_read_without_the_bytes(artifact):
    reader = CleanReader(artifact, "train")
    row, full = reader.without_bytes(7), reader[7]
    assert [entry.pop("bytes") for entry in full["media"]] == [b"one", b"two!"]
    assert row == full
    assert sample_from_row(row, with_bytes=False).parts == CHAT
    assert list(reader.texts())[:2] == ["be brief", "which is larger? größer?"]


def test_a_reader_travels_to_another_process_as_its_folder(artifact):
    data = pickle.dumps(CleanReader(artifact, "train"))
    assert len(data) < 500
    assert pickle.loads(data)[8]["sample_id"] == "a/b/8"


def test_a_split_that_is_not_there_is_empty(artifact):
    assert len(CleanReader(artifact, "test")) == 0


def test_an_artifact_that_is_not_whole_is_refused(artifact):
    with pytest.raises(StoreError, match="not a finished artifact"):
        CleanReader(artifact / "nowhere", "train")
    shard = artifact / "train-00001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"):
        CleanReader(artifact, "train")
    shard.unlink()
    with pytest.raises(StoreError, match="promises 9"):
        CleanReader(artifact, "train")
    write_shard(shard, CLEAN_SCHEMA.with_metadata({"casa.schema": "clean/0"}), [clean_row(0)])
    with pytest.raises(StoreError, match=r"clean/0.*\n.*clean/2"):
        CleanReader(artifact, "train")


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "train-00000.arrow"
    write_shard(path, CLEAN_SCHEMA, [clean_row(0)])
    before = path.read_bytes()

    def rows():
        yield clean_row(1)
        raise DataError("the power went out")

    with pytest.raises(DataError):
        write_shard(path, CLEAN_SCHEMA, rows())
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_batches_are_cut_by_their_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BYTES_PER_BATCH", 10)
    path = tmp_path / "train-00000.arrow"
    rows = [clean_row(n, contents=(b"x" * 6, b"y")) for n in range(5)]
    assert write_shard(path, CLEAN_SCHEMA, rows, size_of=lambda row: 7) == 5
    assert pa.ipc.open_file(path).num_record_batches == 3


# Quarantine


def rejected(row: int, reason: str = "missing_image") -> Rejected:
    return Rejected(
        source="s", file="f.parquet", row=row, sample_id=f"f/{row}", reason=reason, detail="gone", sha256=""
    )


def test_the_quarantine_table_is_ordered_and_comes_back(tmp_path):
    path = tmp_path / "quarantine.parquet"
    write_quarantine(path, [rejected(7), rejected(2)])
    assert read_quarantine(path) == [rejected(2), rejected(7)]
    write_quarantine(path, [])
    assert read_quarantine(path) == []
    assert pa.parquet.read_schema(path).names == QUARANTINE_SCHEMA.names


def test_the_budget_is_a_share_of_all_records():
    check_budget("s", [], 0, 0.0)
    check_budget("s", [rejected(n) for n in range(10)], 1000, 0.01)
    with pytest.raises(DataError) as caught:
        check_budget("s", [rejected(n, "bad_json" if n else "gone") for n in range(11)], 1000, 0.01)
    text = str(caught.value)
    assert "11 of 1000" in text
    assert "10 x bad_json, 1 x gone" in text
    assert "f.parquet row 0" in text
    assert "data.max_failures" in text
