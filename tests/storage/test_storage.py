"""Folders on a disk and on a real S3 server: the same names, the same promises, and errors that help."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from casa_core.errors import ConfigError, StoreError
from pipelines.storage import atomic, retry, s3, transfer
from pipelines.storage.atomic import create, write_whole
from pipelines.storage.errors import explained
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import data_store, filesystem_for, open_folder
from tests.support.s3 import credentials, flaky, free_ports

PART = 5 << 20  # The least that S3 takes as a part that others follow.
BYTES = hashlib.shake_256(b"casa").digest(2 * PART + 12345)


@pytest.fixture(params=["disk", "s3", "memory"])
def folder(request, tmp_path):
    if request.param == "memory":
        return open_folder(f"memory://{uuid.uuid4().hex}/runs")
    return request.getfixturevalue("s3_folder") if request.param == "s3" else tmp_path


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", PART)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(retry, "ATTEMPTS", 2)


# Names


def test_a_uri_comes_back_from_its_text_and_travels_to_other_processes():
    path = open_folder("s3://bucket/a/b?endpoint_override=http://host:9000&region=here")
    assert isinstance(path, RemotePath)
    assert (path.bucket, path.key) == ("bucket", "a/b")
    assert path.settings == s3.S3Settings("http://host:9000", "here")
    assert open_folder(str(path)) == path == pickle.loads(pickle.dumps(path))
    deeper = path / "c" / "d.arrow"
    assert (deeper.name, deeper.stem, deeper.suffix, deeper.parent) == ("d.arrow", "d", ".arrow", path / "c")
    assert str(deeper) == "s3://bucket/a/b/c/d.arrow?endpoint_override=http://host:9000&region=here"
    assert deeper.relative_to(path).as_posix() == "c/d.arrow"
    assert path / "c/d.arrow" == deeper
    assert (path / "c").with_name("e") == path / "e"


def test_the_environment_names_the_server_where_the_uri_does_not(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert s3.S3Settings().resolved() == s3.S3Settings()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert s3.S3Settings().resolved() == s3.S3Settings("http://minio:9000", "us-east-1")
    assert s3.S3Settings("http://other:1", "here").resolved() == s3.S3Settings("http://other:1", "here")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://", "no bucket"),
        ("s3://bucket/a?endpoint=http://h", "Unknown options: endpoint"),
        ("s3://key:secret@bucket/a", "holds credentials"),
        ("abfs://key:secret@host/a", "holds credentials"),
        ("hf://datasets/org/name", "cannot create a file only where there is none"),
        ("https://host/a", "cannot create a file only where there is none"),
        ("nonsense://bucket/a", "cannot create a file only where there is none"),
    ],
)
def test_what_is_no_folder_for_artifacts_is_refused(uri, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        open_folder(uri)
    assert "secret" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "")


def test_a_recipe_says_where_data_lives(tmp_path):
    assert data_store({}) is None
    assert data_store({"data_store": str(tmp_path)}) == tmp_path
    where = {"data_store": "s3://bucket/runs", "s3": {"endpoint": "http://minio:9000", "region": None}}
    assert str(data_store(where)) == "s3://bucket/runs?endpoint_override=http://minio:9000"
    assert str(data_store({**where, "s3": {}})) == "s3://bucket/runs"


# Both kinds of folder behave alike


def test_files_are_written_listed_read_and_removed(folder):
    for name in ("a.json", "b.arrow", "deep/c.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, name)
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.arrow", "deep"]
    assert [path.name for path in folder.glob("*.json")] == ["a.json"]
    assert sorted(path.name for path in folder.rglob("*.json")) == ["a.json", "c.json"]
    assert (folder / "deep" / "c.json").read_text() == "deep/c.json"
    assert (folder / "deep").is_dir()
    assert not (folder / "deep").is_file()
    assert (folder / "deep").exists()
    assert (folder / "a.json").is_file()
    assert not (folder / "a").exists()
    (folder / "a.json").unlink(missing_ok=True)
    (folder / "a.json").unlink(missing_ok=True)
    transfer.remove_tree(folder / "deep")
    transfer.remove_tree(folder / "deep")
    assert [path.name for path in folder.rglob("*")] == ["b.arrow"]
    with pytest.raises(FileNotFoundError):
        (folder / "a.json").read_bytes()


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, len(BYTES)])
def test_a_stream_arrives_as_it_was_written_and_its_digest_is_known(folder, small_parts, size):
    with create(folder / "file") as output:
        for start in range(0, size, 700_001):
            output.write(BYTES[start : min(start + 700_001, size)])
    assert output.written is not None
    assert (output.written.bytes, output.written.sha256) == (size, hashlib.sha256(BYTES[:size]).hexdigest())
    assert (folder / "file").read_bytes() == BYTES[:size]
    atomic.remember(folder / "file", output.written)
    assert atomic.recall(folder / "file", output.written.stamp) == output.written
    assert atomic.recall(folder / "file", "another") is None
    assert atomic.recall(folder / "nothing", "any") is None


def test_a_stream_that_breaks_off_leaves_what_was_there(folder, small_parts):
    def write(data: bytes, fail: bool) -> None:
        with create(folder / "file") as output:
            output.write(data)
            if fail:
                raise RuntimeError("the power went out")

    for before in (None, b"before"):
        if before is not None:
            write(before, fail=False)
        with pytest.raises(RuntimeError):
            write(BYTES, fail=True)
        assert [path.read_bytes() for path in folder.rglob("*")] == ([] if before is None else [before])
    if isinstance(folder, RemotePath) and folder.scheme == "s3":
        assert s3.list_uploads(folder.settings, folder.bucket, folder.key) == []


def test_a_reader_may_take_a_file_away_as_soon_as_it_appears(tmp_path, monkeypatch):
    def appear_and_go(self: Path, target: Path) -> None:
        rename(self, target)
        target.unlink()

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", appear_and_go)
    with create(tmp_path / "file") as output:
        output.write(b"read and removed")
    assert output.written is not None
    assert output.written.bytes == 16
    assert not list(tmp_path.iterdir())


def test_trees_are_copied_either_way(folder, tmp_path):
    with transfer.local_output(folder / "tokenizer") as local:
        (local / "deep").mkdir()
        (local / "deep" / "vocabulary.json").write_bytes(b"{}")
        (local / "merges.txt").write_text("größer")
    with transfer.local_copy(folder / "tokenizer") as local:
        assert (local / "deep" / "vocabulary.json").read_bytes() == b"{}"
        assert (local / "merges.txt").read_text() == "größer"
    if isinstance(folder, RemotePath):
        assert not local.exists()


def test_arrow_reads_what_lies_there(folder):
    import pyarrow as pa

    with create(folder / "t.parquet") as output:
        pq.write_table(pa.table({"x": [1, 2, 3]}), output)
    filesystem, path = filesystem_for(folder / "t.parquet")
    assert pq.read_table(path, filesystem=filesystem).to_pydict() == {"x": [1, 2, 3]}
    filesystem, path = filesystem_for(str(folder))
    names = [info.base_name for info in filesystem.get_file_info(pa.fs.FileSelector(path))]
    assert "t.parquet" in names


def test_of_many_that_put_a_new_object_one_succeeds(s3_folder):
    won: list[int] = []

    def put(number: int) -> None:
        try:
            (s3_folder / "one").write_bytes(str(number).encode(), only_new=True)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(s3_folder / "one").read_text()] == [str(number) for number in won]


# Bad connections


def test_a_connection_that_fails_at_every_tenth_call_changes_nothing(s3_server, s3_folder, small_parts):
    with flaky(s3_server, fail_every=10) as proxy:
        bad = proxy.through(s3_folder)
        for number in range(6):
            size = len(BYTES) - number
            with create(bad / f"{number}.bin") as output:
                output.write(BYTES[:size])
            write_whole(bad / f"{number}.json", f"{number}")
            assert (bad / f"{number}.json").read_text() == f"{number}"
            assert (bad / f"{number}.bin").read_bytes() == BYTES[:size]
            assert (bad / f"{number}.bin").read_range(PART - 5, PART + 5) == BYTES[PART - 5 : PART + 5]
            filesystem, path = filesystem_for(bad / f"{number}.bin")
            with filesystem.open_input_file(path) as file:
                assert file.read() == BYTES[:size]
        assert len(list(bad.iterdir())) == 12
        assert proxy.failed >= 6
    digests = [hashlib.sha256((s3_folder / f"{n}.bin").read_bytes()).hexdigest() for n in range(6)]
    assert digests == [hashlib.sha256(BYTES[: len(BYTES) - n]).hexdigest() for n in range(6)]
    assert s3.list_uploads(s3_folder.settings, s3_folder.bucket, s3_folder.key) == []


def test_an_upload_whose_last_answer_is_lost_is_not_taken_for_a_failure(s3_server, s3_folder, small_parts):
    """The server has completed it, and answers the second request that it knows no such upload."""
    with flaky(s3_server) as proxy:
        proxy.spoil = lambda method, path: "cut" if method == "POST" and "uploadId" in path else ""
        with create(proxy.through(s3_folder) / "file") as output:
            output.write(BYTES)
        assert proxy.failed == 1
    assert (s3_folder / "file").read_bytes() == BYTES


# Errors


ACTIONS = {
    "read": lambda folder: (folder / "x").read_bytes(),
    "write": lambda folder: write_whole(folder / "x", b"1"),
    "stream": lambda folder: write_whole(folder / "x", BYTES),
    "list": lambda folder: list(folder.rglob("*")),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_missing_bucket_is_named(s3_server, s3_folder, small_parts, action):
    with pytest.raises(StoreError) as caught:
        ACTIONS[action](s3_server.folder("runs", bucket="nowhere"))
    assert "s3://nowhere/runs" in caught.value.what
    assert "bucket does not exist" in caught.value.what
    assert "where.store" in caught.value.remedy


@pytest.mark.parametrize("action", ACTIONS)
def test_credentials_that_are_refused_are_named(s3_folder, small_parts, monkeypatch, action):
    s3._filesystem.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    try:
        with pytest.raises(StoreError, match="refuses these credentials") as caught:
            ACTIONS[action](s3_folder)
    finally:
        s3._filesystem.cache_clear()
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy
    assert "wrong" not in str(caught.value)


def test_missing_credentials_are_named(s3_folder, monkeypatch, tmp_path):
    s3._filesystem.cache_clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    try:
        with pytest.raises(StoreError, match="no credentials were found"):
            (s3_folder / "x").read_bytes()
    finally:
        s3._filesystem.cache_clear()


def test_a_clock_that_the_server_refuses_is_named():
    answer = {"Error": {"Code": "RequestTimeTooSkewed", "Message": "The difference is too large."}}
    with pytest.raises(StoreError, match="this machine's clock differs"), explained("s3://bucket/runs"):
        raise ClientError(answer, "PutObject")


@pytest.mark.parametrize(
    "action",
    [action if action == "read" else pytest.param(action, marks=pytest.mark.slow) for action in ACTIONS],
)
def test_a_server_that_does_not_answer_is_named(impatient, small_parts, action):
    (port,) = free_ports(1)
    folder = RemotePath("bucket", "runs", s3.S3Settings(f"http://127.0.0.1:{port}", "us-east-1"))
    with credentials(), pytest.raises(StoreError, match="does not answer") as caught:
        ACTIONS[action](folder)
    assert f"127.0.0.1:{port}" in caught.value.why
    assert "AWS_ENDPOINT_URL" in caught.value.remedy


def test_functions_of_disks_refuse_a_path_on_s3():
    path = open_folder("s3://bucket/a")
    with pytest.raises(TypeError):
        os.fspath(path)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        Path(path)  # type: ignore[arg-type]
    assert not hasattr(path, "replace")
