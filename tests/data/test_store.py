"""Shards: written whole or not at all, read at random, refused when they are not what they should be."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from casa_core.errors import DataError, StoreError
from casa_core.types import Image, Sample
from pipelines.data.pack.sequences import PACK_SCHEMA
from pipelines.data.store import readers, shard_writing
from pipelines.data.store.quarantine import (
    QUARANTINE_SCHEMA,
    Rejected,
    Tally,
    read_quarantine,
    write_quarantine,
)
from pipelines.data.store.readers import CleanReader, PackReader, ShardReader
from pipelines.data.store.rows import CLEAN_SCHEMA, CleanSample, is_video
from pipelines.data.store.shard_writing import write_batches, write_index, write_json, write_shard
from pipelines.storage.atomic import remove_leftovers
from tests.support.data.store import CHAT, LIVE, clean_row, media, pack_row, write_clean


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A clean artifact of two shards with small batches: 5 + 4 rows."""
    monkeypatch.setattr(shard_writing, "ROWS_PER_BATCH", 2)
    write_clean(tmp_path, {"train": [[clean_row(n) for n in range(5)], [clean_row(n) for n in range(5, 9)]]})
    return tmp_path


@pytest.mark.parametrize("parts", [CHAT, LIVE])
def test_a_sample_survives_its_row(parts):
    sample = Sample(source="s", sample_id="x/y", parts=parts)
    contents = media(b"one", b"two") if parts is CHAT else media(b"video", kind="video")
    clean = CleanSample(sample=sample, media=tuple(contents), meta={"n": 1})
    (stored,) = pa.RecordBatch.from_pylist([clean.to_row()], schema=CLEAN_SCHEMA).to_pylist()
    full = CleanSample.from_row(stored)
    assert (full.media, full.meta) == (clean.media, clean.meta)
    data = [part.data for part in full.sample.parts if isinstance(part, Image)]
    assert data == ([b"one", b"two"] if parts is CHAT else [b"video", b"video"])
    assert is_video(sample) is (parts is LIVE)
    for entry in stored["media"]:
        del entry["bytes"]
    assert CleanSample.from_row(stored).sample == sample


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
    assert reader.sample(7).sample.parts == CHAT
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
    card = json.loads((artifact / "card.json").read_text())
    card["splits"]["train"]["rows"] = 10
    write_json(artifact / "card.json", card)
    with pytest.raises(StoreError, match="promises 10"):
        CleanReader(artifact, "train")
    (artifact / "card.json").write_text("{")
    with pytest.raises(StoreError, match="not a finished artifact"):
        CleanReader(artifact, "train")


def test_a_shard_that_is_not_what_the_card_says_is_refused_when_it_is_opened(artifact):
    reader = CleanReader(artifact, "train")
    assert len(reader) == 9
    assert reader[0]["sample_id"] == "a/b/0"
    shard = artifact / "train-00001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"):
        reader[5]
    shard.unlink()
    with pytest.raises(StoreError, match="missing"):
        reader[5]
    write_shard(shard, CLEAN_SCHEMA, [clean_row(0)])
    with pytest.raises(StoreError, match=r"holds 1 rows.*\n.*promises 4"):
        reader[5]
    write_shard(shard, CLEAN_SCHEMA.with_metadata({"casa.schema": "clean/0"}), [clean_row(0)] * 4)
    with pytest.raises(StoreError, match=r"clean/0.*\n.*clean/3"):
        reader[5]
    shard.write_bytes(whole)
    assert reader[5]["sample_id"] == "a/b/5"


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
    assert [found.name for found in tmp_path.iterdir() if found.is_file()] == [path.name]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    for name in (".train-00000.arrow.4711", ".card.json.4711", "card.json"):
        (tmp_path / name).write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["card.json"]


def test_batches_are_cut_by_their_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writing, "BYTES_PER_BATCH", 10)
    path = tmp_path / "train-00000.arrow"
    rows = [clean_row(n, contents=(b"x" * 6, b"y")) for n in range(5)]
    assert write_shard(path, CLEAN_SCHEMA, rows, size_of=lambda row: 7) == 5
    assert pa.ipc.open_file(path).num_record_batches == 3


def test_columns_are_cut_into_even_batches_however_they_come(tmp_path):
    rows = [pack_row(n) for n in range(11)]
    batch = pa.RecordBatch.from_pylist(rows, schema=PACK_SCHEMA)
    cuts = {"whole": [11], "ones": [1] * 11, "odd": [3, 0, 7, 1]}
    for name, sizes in cuts.items():
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        parts = [batch.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
        assert write_batches(tmp_path / f"{name}.arrow", PACK_SCHEMA, parts, rows_per_batch=4) == 11
        file = pa.ipc.open_file(tmp_path / f"{name}.arrow")
        assert [file.get_batch(n).num_rows for n in range(file.num_record_batches)] == [4, 4, 3]
        assert list(ShardReader([tmp_path / f"{name}.arrow"], "pack/3")) == batch.to_pylist()
    assert write_batches(tmp_path / "none.arrow", PACK_SCHEMA, []) == 0
    assert len(ShardReader([tmp_path / "none.arrow"], "pack/3")) == 0


def test_the_index_of_five_million_sequences_stays_small_on_disk_and_in_memory(tmp_path):
    count = 5_000_000
    kinds = np.random.default_rng(0).random(count) < 0.25
    shards = [{"file": f"packed-{n:05d}.arrow", "rows": 512} for n in range(count // 512)]
    shards.append({"file": "packed-last.arrow", "rows": count % 512})
    write_index(tmp_path, shards, kinds)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6.5e6
    tracemalloc.start()
    reader = PackReader(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * count, "arrays of numbers; Python objects would take four times as much"
    assert len(reader) == count
    assert np.array_equal(reader.by_kind["video"], np.flatnonzero(kinds))
    assert len(reader.by_kind["image"]) + len(reader.by_kind["video"]) == count


def test_a_reader_of_many_shards_holds_few_of_them_open(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "OPEN_SHARDS", 3)
    write_clean(tmp_path, {"train": [[clean_row(n)] for n in range(20)]})
    before = mapped_files()
    reader = CleanReader(tmp_path, "train")
    for number in (*range(20), 5, 19, 0):
        assert reader[number]["sample_id"] == f"a/b/{number}"
    assert mapped_files() - before <= 3


def mapped_files() -> int:
    return sum(".arrow" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_media_are_read_together_in_any_order(artifact):
    reader = CleanReader(artifact, "train")
    places = [(8, 1), (0, 0), (3, 1), (0, 1), (8, 1)]
    assert reader.media_of(places) == [b"two!", b"one", b"two!", b"two!", b"two!"]
    assert reader.media_of([]) == []
    with pytest.raises(IndexError, match="Row 4 has no media 2, only 2 in all"):
        reader.media_of([(0, 0), (4, 2)])


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
    Tally().check("s", 0, 0.0)
    Tally.of(rejected(n) for n in range(10)).check("s", 1000, 0.01)
    with pytest.raises(DataError) as caught:
        Tally.of(rejected(n, "bad_json" if n else "gone") for n in range(11)).check("s", 1000, 0.01)
    text = str(caught.value)
    assert "11 of 1000" in text
    assert "10 x bad_json, 1 x gone" in text
    assert "For example, bad_json: f.parquet row 1: gone." in text  # the most frequent reason's first record
    assert "data.max_failures" in text
