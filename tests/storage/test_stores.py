"""What s3fs and fsspec leave to us: one winner, whole objects, our own uploads alone, forks, other stores."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from casa_core.errors import ConfigError, StoreError
from pipelines.dag import artifact
from pipelines.data.filter.hash_lists import known_pictures
from pipelines.data.store.quarantine import Rejected, read_quarantine, write_quarantine
from pipelines.storage import retry, s3
from pipelines.storage.atomic import create, write_whole
from pipelines.storage.remote_path import Listed, RemotePath
from pipelines.storage.transfer import copy_tree
from pipelines.storage.uri import filesystem_for, open_folder
from pipelines.train.checkpoint.resume import file_damage
from pipelines.train.checkpoint.tensor_file import TensorFile, write_tensors
from tests.support.s3 import flaky

PART = 5 << 20


@pytest.fixture(params=["s3", "memory"])
def store(request) -> RemotePath:
    if request.param == "s3":
        return request.getfixturevalue("s3_folder")
    path = open_folder(f"memory://{uuid.uuid4().hex}/runs")
    assert isinstance(path, RemotePath)
    return path


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", PART)


# Of two writers, one


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_of_many_that_create_an_object_one_succeeds_whatever_its_size(store, size):
    start = threading.Barrier(8)

    def put(number: int) -> bool:
        start.wait()
        with contextlib.suppress(FileExistsError):
            (store / "one").write_bytes(bytes([number]) * size, only_new=True)
            return True
        return False

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(put, range(8)))
    assert won.count(True) == 1
    assert (store / "one").read_bytes() == bytes([won.index(True)]) * size


def test_a_creation_whose_answer_is_lost_is_ours_and_another_writers_is_not(s3_server, s3_folder):
    with flaky(s3_server) as proxy:
        proxy.spoil = lambda method, path: "cut" if method == "PUT" else ""
        (proxy.through(s3_folder) / "one").write_bytes(b"mine", only_new=True)
        assert proxy.failed == 1
        with pytest.raises(FileExistsError):
            (proxy.through(s3_folder) / "one").write_bytes(b"theirs", only_new=True)
    assert (s3_folder / "one").read_bytes() == b"mine"


def test_an_artifact_of_any_store_is_committed_once(store):
    write_whole(store / "file", "content")
    first = artifact.commit(store, {"fingerprint": "f", "kind": "clean"}, {}, {"host": "first"})
    assert artifact.commit(store, {"fingerprint": "f", "kind": "clean"}, {}, {"host": "second"}) == first
    assert artifact.verify(store) == []


# Uploads


def test_an_upload_that_fails_ends_itself_and_no_other(s3_folder, small_parts):
    others = [s3_folder / "file", s3_folder / "other"]
    begun = [s3.call(s3_folder.settings, "create_multipart_upload", p.bucket, p.key) for p in others]

    def fail() -> None:
        with create(s3_folder / "file") as output:
            output.write(bytes(2 * PART))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    left = {upload for _, upload, _ in s3.list_uploads(s3_folder.settings, s3_folder.bucket, s3_folder.key)}
    assert left == {upload["UploadId"] for upload in begun}
    assert not (s3_folder / "file").exists()
    assert (s3_folder / "none").abort_uploads() == 0
    assert s3_folder.abort_uploads() == 2


def test_parts_are_sent_side_by_side(s3_folder, small_parts, monkeypatch):
    """None of the first parts is answered before all of them are under way."""
    together = threading.Barrier(s3.PARTS_UNDER_WAY)
    call = s3.call

    def waiting(settings: Any, method: str, *where: str, **arguments: Any) -> dict[str, Any]:
        if method == "upload_part" and arguments["PartNumber"] <= s3.PARTS_UNDER_WAY:
            together.wait(timeout=60)
        return call(settings, method, *where, **arguments)

    monkeypatch.setattr(s3, "call", waiting)
    data = bytes(range(256)) * (PART // 256 * 5)
    with create(s3_folder / "file") as output:
        output.write(data)
    assert (s3_folder / "file").read_bytes() == data


def test_a_part_that_cannot_be_sent_ends_the_write(s3_folder, small_parts):
    def fail() -> None:
        with create(s3_folder / "file") as output:
            output.write(bytes(PART + 1))
            s3_folder.abort_uploads()  # as another run's commit does
            output.write(bytes(2 * PART))

    with pytest.raises(StoreError, match="its upload was ended from outside"):
        fail()
    assert not (s3_folder / "file").exists()


def test_an_upload_that_is_unknown_when_it_is_completed_again_is_there(s3_folder, small_parts, monkeypatch):
    """As servers answer the second request where the answer to the first was lost."""
    call = s3.call

    def twice(settings: Any, method: str, *where: str, **arguments: Any) -> dict[str, Any]:
        done = call(settings, method, *where, **arguments)
        if method == "complete_multipart_upload":
            return call(settings, method, *where, **{**arguments, "UploadId": "unknown"})
        return done

    monkeypatch.setattr(s3, "call", twice)
    with create(s3_folder / "file") as output:
        output.write(bytes(PART + 1))
    assert output.written is not None
    assert (s3_folder / "file").listed() == Listed(PART + 1, output.written.stamp)


def test_an_upload_that_another_run_has_ended_is_not_taken_for_complete(s3_folder, small_parts, monkeypatch):
    write_whole(s3_folder / "file", b"another's")
    monkeypatch.setattr(s3.S3Upload, "_complete", ended_first(s3.S3Upload._complete, s3_folder))
    with pytest.raises(StoreError, match="its upload was ended from outside"):
        write_whole(s3_folder / "file", bytes(PART + 1))
    assert (s3_folder / "file").read_bytes() == b"another's"


def ended_first(complete: Any, folder: RemotePath) -> Any:
    def ended(upload: s3.S3Upload) -> str:
        assert folder.abort_uploads() == 1
        return complete(upload)

    return ended


# Reading


def test_ends_and_ranges_of_short_objects(store):
    write_whole(store / "empty", b"")
    write_whole(store / "short", b"abc")
    assert (store / "empty").read_bytes() == (store / "empty").read_tail(8) == b""
    assert (store / "short").read_tail(8) == b"abc"
    assert (store / "short").read_tail(2) == b"bc"
    assert (store / "short").read_range(1, 3) == b"bc"
    for start, end in ((1, 9), (5, 9)):
        with pytest.raises(StoreError, match="ends early"):
            (store / "short").read_range(start, end)


def test_a_folder_is_not_mistaken_for_what_begins_like_it(store):
    both = ["run"] if store.scheme == "s3" else []  # where an object may be called as a folder is
    for name in ("run/a", "run-2/b", *both):
        write_whole(store / name, name)
    assert list((store / "run").listing()) == ["a"]
    assert [path.name for path in (store / "run").iterdir()] == ["a"]
    assert sorted(path.name for path in store.iterdir()) == ["run", "run-2"]
    (store / "run").remove_tree()
    assert sorted(store.listing()) == [*both, "run-2/b"]


def test_a_folder_mark_of_a_web_console_is_no_file(s3_folder):
    s3.call(s3_folder.settings, "put_object", s3_folder.bucket, f"{s3_folder.key}/deep/", Body=b"")
    write_whole(s3_folder / "deep" / "file", "1")
    assert list(s3_folder.listing()) == ["deep/file"]
    assert [path.name for path in (s3_folder / "deep").iterdir()] == ["file"]


def test_what_another_process_has_written_is_seen_at_once(store, s3_server):
    assert list(store.iterdir()) == []
    write_whole(store / "a", "1")
    assert (store / "a").exists()
    if store.scheme == "s3":
        with flaky(s3_server) as proxy:
            write_whole(proxy.through(store) / "b", "2")
    assert len(list(store.iterdir())) == (2 if store.scheme == "s3" else 1)


# Clients


def _read_in_child(path: RemotePath, answer: Any) -> None:
    answer.send(path.read_bytes())


def test_a_process_that_was_forked_reads_with_a_client_of_its_own(s3_folder):
    write_whole(s3_folder / "file", b"content")
    before = s3.filesystem(s3_folder.settings)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_read_in_child, args=(s3_folder / "file", there))
    child.start()
    assert here.poll(60)
    assert here.recv() == b"content"
    child.join(60)
    assert child.exitcode == 0
    assert s3.filesystem(s3_folder.settings) is before
    assert (s3_folder / "file").read_bytes() == b"content"


def test_threads_share_one_client_and_servers_have_their_own(s3_folder):
    write_whole(s3_folder / "file", b"content")
    with ThreadPoolExecutor(16) as threads:
        clients = list(threads.map(lambda _: s3.filesystem(s3_folder.settings), range(16)))
        read = list(threads.map(lambda _: (s3_folder / "file").read_bytes(), range(64)))
    assert {id(client) for client in clients} == {id(s3.filesystem(s3_folder.settings))}
    assert set(read) == {b"content"}
    assert s3.filesystem(s3.S3Settings("http://127.0.0.1:1", "us-east-1")) is not clients[0]


# Other stores


def test_a_store_whose_package_is_missing_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"(?s)gs://bucket.*pip install gcsfs"):
        (open_folder("gs://bucket/runs") / "file").exists()
    with pytest.raises(ConfigError, match="pip install gcsfs"):
        filesystem_for("gs://bucket/raw")
    with pytest.raises(ConfigError, match="nonsense"):
        filesystem_for("nonsense://bucket/raw")


def test_a_uri_of_memory_comes_back_from_its_text():
    path = open_folder("memory://runs/a")
    assert str(path / "b") == "memory://runs/a/b"
    assert open_folder(str(path)) == path != open_folder("s3://runs/a")
    assert open_folder("s3a://bucket/a") == open_folder("s3://bucket/a")


def test_errors_of_the_network_are_attempted_as_often_as_the_one_retry_says(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    calls: list[int] = []

    def fails() -> None:
        calls.append(1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        retry.retry(fails)
    assert len(calls) == retry.ATTEMPTS


# Answers that break off


def test_whatever_reads_a_file_asks_again_where_the_answer_breaks_off(s3_server, s3_folder, tmp_path):
    """Arrow's client tries a request again that fails, but not one whose answer ends early."""
    content = bytes(range(256)) * 1024
    (s3_folder / "tree" / "large").write_bytes(content)
    tensor = torch.arange(50_000, dtype=torch.float32)
    written = write_tensors(s3_folder / "one.safetensors", {"x": tensor})
    rejected = Rejected(source="s", file="f", row=1, sample_id="f/1", reason="bad_json", detail="d" * 9000)
    write_quarantine(s3_folder / "quarantine.parquet", [rejected])
    hashes = [{"sha256": "0" * 64, "phash": number} for number in range(999)]
    (s3_folder / "hashes.json").write_text(json.dumps(hashes))
    with flaky(s3_server) as proxy:
        proxy.spoil = lambda method, path: "cut" if method == "GET" else ""
        store = proxy.through(s3_folder)
        copy_tree(store / "tree", tmp_path)
        assert (tmp_path / "large").read_bytes() == content
        assert torch.equal(TensorFile(store / "one.safetensors").read("x"), tensor)
        entry = {"bytes": written.bytes, "sha256": written.sha256}
        assert file_damage(store / "one.safetensors", entry) is None
        assert read_quarantine(store / "quarantine.parquet") == [rejected]
        known_pictures((str(store / "hashes.json"),), 0)
    assert proxy.failed >= 5
