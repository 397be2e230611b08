"""Data artifacts on a real S3 server: the same as in a folder, in few requests, whatever dies or fails."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from casa_core.errors import StoreError
from casa_core.types import Sample
from pipelines.dag import artifact
from pipelines.data.store import ipc_layout, readers, shard_writing
from pipelines.data.store.readers import CleanReader, PackReader, ShardReader
from pipelines.data.store.rows import CLEAN_SCHEMA
from pipelines.data.store.shard_writing import write_shard
from pipelines.storage import s3
from pipelines.storage.remote_path import RemotePath
from tests.support.data import shard_writer
from tests.support.data.rows import row_of
from tests.support.data.store import CHAT, media_bytes, pack_row, random_media, write_clean, write_pack
from tests.support.paths import ROOT
from tests.support.s3 import flaky

PICTURE = 300_000  # Larger than the gap that is read along with what lies around it.


def picture_row(number: int, sizes=(PICTURE, PICTURE)) -> dict:
    sample = Sample(source="s", sample_id=f"a/b/{number}", parts=CHAT)
    return row_of(sample, random_media(number, sizes), {"größe": number})


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(shard_writing, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(shard_writing, "PACKED_ROWS_PER_BATCH", 4)


@pytest.fixture
def pictures(small_batches) -> list[list[dict]]:
    """Rows of two shards: 10 + 6, of pictures that are worth a request each."""
    return [[picture_row(n) for n in range(10)], [picture_row(n) for n in range(10, 16)]]


# Reading


def test_every_reader_gives_the_same_on_s3_as_in_a_folder(s3_folder, tmp_path, pictures):
    sequences = [[pack_row(n) for n in range(11)], [pack_row(n) for n in range(11, 15)]]
    for folder in (tmp_path / "clean", s3_folder / "clean"):
        folder.mkdir(parents=True, exist_ok=True)
        write_clean(folder, {"train": pictures, "test": []})
    for folder in (tmp_path / "pack", s3_folder / "pack"):
        folder.mkdir(parents=True, exist_ok=True)
        write_pack(folder, sequences)
    here, there = (CleanReader(folder / "clean", "train") for folder in (tmp_path, s3_folder))
    assert list(there) == list(here)
    contents = [[entry["bytes"] for entry in row["media"]] for shard in pictures for row in shard]
    assert [[entry["bytes"] for entry in row["media"]] for row in there] == contents
    assert list(there.texts()) == list(here.texts())
    assert [there.without_bytes(n) for n in range(16)] == [here.without_bytes(n) for n in range(16)]
    places = [(int(n), int(m)) for n, m in np.random.default_rng(0).integers(0, (16, 2), (40, 2))]
    assert there.media_of(places) == here.media_of(places)
    for reader in (here, there):
        batch, row = reader.locate(5)
        assert batch.slice(row, 1).to_pylist() == [reader.without_bytes(5)]
    assert len(CleanReader(s3_folder / "clean", "test")) == 0
    packed = [PackReader(folder / "pack") for folder in (tmp_path, s3_folder)]
    assert list(packed[1]) == list(packed[0])
    assert [row["input_ids"] for row in packed[1]] == [row["input_ids"] for s in sequences for row in s]
    assert packed[1].by_kind["image"].tolist() == list(range(15))
    assert packed[1].metadata == packed[0].metadata
    assert pickle.loads(pickle.dumps(there))[12] == here[12]
    assert pickle.loads(pickle.dumps(packed[1]))[12] == packed[0][12]
    assert list(ShardReader([s3_folder / "pack" / "packed-00001.arrow"], "pack/3")) == list(packed[0])[11:]


def test_rows_without_bytes_cost_no_bytes(s3_server, s3_folder, pictures):
    write_clean(s3_folder, {"train": pictures})
    with flaky(s3_server) as proxy:
        reader = CleanReader(proxy.through(s3_folder), "train")
        assert sum(1 for _ in reader.texts()) > 0
        assert [reader.without_bytes(n)["sample_id"] for n in range(16)] == [f"a/b/{n}" for n in range(16)]
    assert proxy.sent < 0.05 * sum(map(media_bytes, pictures[0] + pictures[1]))
    # The card; two footers; five headers; of five batches what lies before the bytes, and after them.
    assert len(proxy.requests) == 1 + 2 + 5 + 2 * 5


def test_the_pictures_of_a_sequence_come_in_few_requests_and_alone(s3_server, s3_folder, pictures):
    write_clean(s3_folder, {"train": pictures})
    with flaky(s3_server) as proxy:
        reader = CleanReader(proxy.through(s3_folder), "train")
        reader.media_of([(4, 0)])  # The card, the shard's footer and headers, the batch's layout.
        proxy.requests.clear()
        proxy.sent = 0
        found = reader.media_of([(4, 0), (4, 1), (5, 0), (7, 1)])
    expected = [pictures[0][n]["media"][m]["bytes"] for n, m in ((4, 0), (4, 1), (5, 0), (7, 1))]
    assert found == expected
    # Three lie side by side; between them and the fourth lie three that nobody asked for.
    assert len(proxy.requests) == 2
    assert 4 * PICTURE <= proxy.sent < 4.1 * PICTURE


def test_bytes_that_an_earlier_row_holds_still_cost_one_request(s3_server, s3_folder, pictures):
    first, *later = pictures[0]
    followers = [
        row | {"media": [entry | {"bytes": None, "at_row": 0, "at_media": 1} for entry in row["media"][:1]]}
        for row in later
    ]
    write_clean(s3_folder, {"train": [[first, *followers]]})
    with flaky(s3_server) as proxy:
        reader = CleanReader(proxy.through(s3_folder), "train")
        reader.media(1, 0)
        proxy.requests.clear()
        proxy.sent = 0
        assert reader.media(2, 0) == first["media"][1]["bytes"]
        assert len(proxy.requests) == 1
        assert PICTURE <= proxy.sent < 1.1 * PICTURE
        assert len(reader[3]["media"][0]["bytes"]) == PICTURE


def test_sequences_in_random_order_take_two_requests_each_once_shards_are_open(
    s3_server, s3_folder, pictures
):
    """One for the batch of packed rows, one for the pictures of a document: the cost of a step's data."""
    write_clean(s3_folder / "clean", {"train": pictures})
    write_pack(s3_folder / "pack", [[pack_row(n, ((n, 0), (n, 1))) for n in range(16)]])
    order = random.Random(0).sample(range(16), 16)
    with flaky(s3_server) as proxy:
        folder = proxy.through(s3_folder)
        pack, clean = PackReader(folder / "pack"), CleanReader(folder / "clean", "train")
        for number in order:
            images = pack[number]["images"]
            data = clean.media_of([(image["row"], image["media"]) for image in images])
            assert data == [entry["bytes"] for entry in (pictures[0] + pictures[1])[number]["media"]]
    opening = 3 + 1 + 2 + 5 + 2 * 5  # index, kinds, card; footers; headers and layouts of clean batches
    assert len(proxy.requests) <= opening + 4 + 16


def test_what_is_kept_in_memory_is_bounded(s3_server, s3_folder, small_batches, monkeypatch):
    rows = [pack_row(n) for n in range(64)]
    write_pack(s3_folder, [rows])
    shard = s3_folder / "packed-00000.arrow"
    monkeypatch.setattr(readers, "CACHE_BYTES", shard.listed().size // 8)
    with flaky(s3_server) as proxy:
        reader = PackReader(proxy.through(s3_folder))
        for _ in range(2):
            assert [row["input_ids"] for row in reader] == [row["input_ids"] for row in rows]
        assert reader._batches._weight <= readers.CACHE_BYTES
    batches = [request for request in proxy.requests if "packed" in request[1]]
    assert len(batches) == 1 + 2 * 16  # The footer; each batch once a pass, though asked for four rows of it.


def test_a_footer_tells_where_batches_lie_as_arrow_has_written_them(tmp_path, pictures):
    """Against Arrow: a batch is read from its span alone, and the spans follow each other in the file."""
    import pyarrow as pa

    write_shard(tmp_path / "a.arrow", CLEAN_SCHEMA, pictures[0], size_of=media_bytes)
    whole = (tmp_path / "a.arrow").read_bytes()
    file = pa.ipc.open_file(tmp_path / "a.arrow")
    schema, blocks = ipc_layout.read_footer(whole[-4096:])
    assert schema.equals(file.schema, check_metadata=True)
    assert len(blocks) == file.num_record_batches == 3
    for number, block in enumerate(blocks):
        message = pa.ipc.read_message(whole[slice(*block.span)])
        assert pa.ipc.read_record_batch(message, schema).equals(file.get_batch(number))
        assert number == 0 or block.offset == blocks[number - 1].span[1]
    empty = tmp_path / "empty.arrow"
    write_shard(empty, CLEAN_SCHEMA, [])
    assert ipc_layout.read_footer(empty.read_bytes())[1] == []


def test_damaged_and_missing_shards_are_named(s3_folder, pictures):
    write_clean(s3_folder, {"train": pictures})
    path = s3_folder / "train-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"train-00001.*damaged"):
        CleanReader(s3_folder, "train")[12]
    path.unlink()
    with pytest.raises(StoreError, match=r"train-00001.*missing"):
        CleanReader(s3_folder, "train")[12]
    write_shard(path, CLEAN_SCHEMA, pictures[1][:2], size_of=media_bytes)
    with pytest.raises(StoreError, match=r"holds 2 rows.*\n.*promises 6"):
        CleanReader(s3_folder, "train")[12]
    with pytest.raises(StoreError, match="not a finished artifact"):
        CleanReader(s3_folder / "nowhere", "train")


# Artifacts


def test_the_content_digest_is_the_same_on_s3_as_in_a_folder_and_nothing_is_read_for_it(
    s3_server, s3_folder, tmp_path, pictures
):
    manifests = {}
    with flaky(s3_server) as proxy:
        for name, folder in {"disk": tmp_path, "s3": proxy.through(s3_folder)}.items():
            artifact.begin(folder)
            write_clean(folder, {"train": pictures})
            proxy.sent = 0
            manifests[name] = artifact.commit(folder, {"fingerprint": "f", "kind": "clean"}, {}, {})
    assert manifests["s3"]["content_digest"] == manifests["disk"]["content_digest"]
    assert manifests["s3"]["files"] == manifests["disk"]["files"]
    assert proxy.sent < 20_000
    assert artifact.verify(s3_folder) == []
    assert sorted(path.name for path in s3_folder.rglob("*")) == [
        "card.json", "manifest.json", "train-00000.arrow", "train-00001.arrow",
    ]  # fmt: skip
    (s3_folder / "card.json").write_text("{}")
    (fault,) = artifact.verify(s3_folder)
    assert (fault.file, fault.kind) == ("card.json", "size")


def test_a_file_that_was_written_again_by_other_means_is_read_for_its_digest(s3_folder, pictures):
    write_clean(s3_folder, {"train": pictures})
    (s3_folder / "train-00001.arrow").write_bytes(b"other")
    artifact.commit(s3_folder, {"fingerprint": "f", "kind": "clean"}, {}, {})
    assert artifact.verify(s3_folder) == []


def test_without_a_manifest_nothing_exists_and_it_comes_last(s3_server, s3_folder):
    with flaky(s3_server) as proxy:
        folder = proxy.through(s3_folder)
        assert artifact.read_manifest(folder) is None
        shard_writer.make(folder)
    puts = [path for method, path, _ in proxy.requests if method == "PUT" and "/.reports/" not in path]
    assert puts[-1].endswith("/manifest.json")
    assert [path.rpartition("/")[2] for path in puts].count("manifest.json") == 1


def test_another_run_that_commits_the_same_is_welcome_and_other_contents_are_not(s3_folder):
    identity = {"fingerprint": "f", "kind": "clean"}
    (s3_folder / "file").write_text("one")
    first = artifact.commit(s3_folder, identity, {}, {"host": "first"})
    second = artifact.commit(s3_folder, identity, {}, {"host": "second"})
    assert second == first == artifact.read_manifest(s3_folder)
    (s3_folder / "file").write_text("two")
    with pytest.raises(StoreError, match="other contents"):
        artifact.commit(s3_folder, identity, {}, {})
    assert artifact.read_manifest(s3_folder) == first


# Whatever dies or fails


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", shard_writer.PART_BYTES)


def writer(folder) -> subprocess.Popen[str]:
    """Makes the artifact in a process of its own, which has begun when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.data.shard_writer", str(folder)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)
    assert process.returncode == 0


def kill_and_resume(folder: RemotePath, delays: list[float]) -> None:
    """Kills one writer after the other, each having gone on where the one before it was killed."""
    for delay in delays:
        process = writer(folder)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(writer(folder))


def assert_same(folder: RemotePath, local: Path) -> None:
    ours, theirs = artifact.read_manifest(folder), artifact.read_manifest(local)
    assert ours is not None
    assert theirs is not None
    assert ours["files"] == theirs["files"]
    assert artifact.verify(folder) == []
    assert sorted(p.name for p in folder.rglob("*")) == sorted([*theirs["files"], artifact.MANIFEST])
    assert s3.list_uploads(folder.settings, folder.bucket, folder.key) == []


def test_a_writer_that_is_killed_is_resumed_shard_by_shard_and_leaves_nothing(
    s3_folder, small_parts, tmp_path, capsys
):
    shard_writer.make(tmp_path)
    process = writer(s3_folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "wrote 0\n"
    deadline = time.monotonic() + 20
    while not s3.list_uploads(s3_folder.settings, s3_folder.bucket, s3_folder.key):
        assert time.monotonic() < deadline, "no upload of the second shard was seen"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert artifact.read_manifest(s3_folder) is None
    assert s3.list_uploads(s3_folder.settings, s3_folder.bucket, s3_folder.key) != []
    assert not (s3_folder / "train-00002.arrow").is_file()
    capsys.readouterr()
    shard_writer.make(s3_folder)
    assert capsys.readouterr().out == "wrote 1\nwrote 2\n"
    assert_same(s3_folder, tmp_path)


@pytest.mark.slow
def test_killed_at_random_moments_the_artifact_comes_out_the_same(s3_folder, tmp_path):
    shard_writer.make(tmp_path)
    draw = random.Random(3)
    for number in range(6):
        kill_and_resume(s3_folder / str(number), [draw.uniform(0.0, 1.5) for _ in range(3)])
        assert_same(s3_folder / str(number), tmp_path)


@pytest.mark.slow
def test_two_writers_of_one_artifact_at_once_leave_one_whole_artifact(s3_folder, tmp_path):
    """The slower one finds the artifact committed; it may fail for that, but harms nothing."""
    shard_writer.make(tmp_path)
    processes = [writer(s3_folder) for _ in range(2)]
    codes = [process.communicate(timeout=60) and process.returncode for process in processes]
    assert 0 in codes
    assert_same(s3_folder, tmp_path)


def test_over_a_bad_connection_the_same_bytes_come_out(s3_server, s3_folder, small_parts, tmp_path):
    shard_writer.make(tmp_path)
    with flaky(s3_server, fail_every=10) as proxy:
        bad = proxy.through(s3_folder)
        shard_writer.make(bad)
        assert proxy.failed > 0
        before = proxy.failed
        reader = CleanReader(bad, "train")
        assert list(reader) == list(CleanReader(tmp_path, "train"))
        proxy.fail_every = 3
        again = CleanReader(bad, "train")
        assert [again[n] for n in (9, 0, 5)] == [reader[n] for n in (9, 0, 5)]
        assert proxy.failed > before
    assert_same(s3_folder, tmp_path)
