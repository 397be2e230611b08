"""Raw files from a folder, from S3 and from the hub alike, over connections that fail now and then."""

from __future__ import annotations

import io
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from casa_core.errors import ConfigError, DataError, StoreError, TransferError
from pipelines.dag.raw_inputs import identify_remote
from pipelines.data.read import READERS, open_reader
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.remote_file import RemoteFile
from pipelines.storage import retry
from pipelines.storage.errors import attempt
from pipelines.storage.raw_listing import list_raw
from pipelines.storage.remote_path import RemotePath
from tests.support.data.hub import Hub, running_hub
from tests.support.data.layouts import write_every_layout
from tests.support.s3 import flaky, free_ports


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "corpus"
    write_every_layout(folder)
    return folder


@pytest.fixture
def hub(corpus, monkeypatch) -> Iterator[Hub]:
    with running_hub(corpus) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)


def everything(root: str, name: str) -> list[object]:
    """What a reader finds, its pickled copy reading, as in a worker."""
    reader = open_reader(name, f"{root}/{name}", "corpus", {})
    spans = reader.spans("train")
    return [result for span in spans for result in pickle.loads(pickle.dumps(reader)).read(span)]


def upload(folder: Path, to: RemotePath) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (to / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


# The hub


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_every_reader_finds_on_the_hub_what_it_finds_in_a_folder(corpus, hub, revision):
    for name in READERS:
        root = f"hf://datasets/org/pictures{revision}"
        assert everything(root, name) == everything(str(corpus), name)
    about_it = [request for request in hub.requests if "org/pictures" in request[1]]
    assert {authorization for *_, authorization in about_it} == {"Bearer hf_secret"}
    tag = revision.removeprefix("@") or "main"
    assert all(f"/resolve/{tag}/" in path for _, path, *_ in hub.requests if "/resolve/" in path)


def test_a_hub_that_is_busy_now_and_then_changes_nothing(corpus, hub, impatient, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fail_every = 4
    assert everything("hf://datasets/org/pictures", "finevision") == everything(str(corpus), "finevision")
    assert everything("hf://datasets/org/pictures@v1", "llava_video") == everything(
        str(corpus), "llava_video"
    )


def test_what_lies_on_the_hub_is_identified_by_its_content(corpus, hub, tmp_path):
    listing = list_raw("hf://datasets/org/pictures/finevision").files
    assert listing.keys() == {"ramps/train-00000-of-00001.parquet", "scans/train-0.parquet"}
    for name, entry in listing.items():
        assert entry.size == (corpus / "finevision" / name).stat().st_size
    one = identify_remote("hf://datasets/org/pictures/finevision")
    assert one == identify_remote("hf://datasets/org/pictures@v1/finevision")
    assert one != identify_remote("hf://datasets/org/pictures/image_text")


def test_a_repository_that_is_not_there_is_named(hub):
    with pytest.raises(ConfigError, match="org/nothing"):
        Files("hf://datasets/org/nothing").names(".parquet")
    with pytest.raises(DataError, match="cannot be listed"):
        Files("hf://datasets/org/pictures/nowhere").names(".parquet")
    with pytest.raises(ConfigError, match="hf://datasets"):
        Files("hf://datasets").names(".parquet")


def test_a_hub_that_cannot_be_reached_ends_with_a_sentence(impatient, monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    for action in (lambda uri: Files(uri).names(".parquet"), identify_remote):
        with pytest.raises(TransferError, match=r"(?s)does not answer.*6 attempts.*HF_ENDPOINT"):
            action("hf://datasets/org/pictures")


# Other stores


def test_every_reader_finds_in_memory_what_it_finds_in_a_folder(corpus):
    root = f"memory://{uuid.uuid4().hex}"
    upload(corpus, RemotePath.from_uri(root))
    for name in READERS:
        assert everything(root, name) == everything(str(corpus), name)


# S3


def test_every_reader_finds_on_s3_what_it_finds_in_a_folder(corpus, s3_server, s3_folder, impatient):
    upload(corpus, s3_folder)
    expected = {name: everything(str(corpus), name) for name in READERS}
    settings = s3_folder.settings.query()

    def found(query: str) -> dict[str, list[object]]:
        readers = {
            name: open_reader(name, f"{(s3_folder / name).place}?{query}", "corpus", {}) for name in READERS
        }
        return {
            name: [result for span in reader.spans("train") for result in reader.read(span)]
            for name, reader in readers.items()
        }

    assert found(settings) == expected
    with flaky(s3_server, fail_every=10) as proxy:
        assert found(proxy.through(s3_folder).settings.query()) == expected
    assert proxy.failed > 0


def test_what_lies_on_s3_is_identified_by_its_content(corpus, s3_folder):
    upload(corpus / "image_text", s3_folder / "a")
    upload(corpus / "image_text", s3_folder / "b")
    a, b = (f"{(s3_folder / name).place}?{s3_folder.settings.query()}" for name in "ab")
    assert identify_remote(a) == identify_remote(b)
    (s3_folder / "b" / "a.jsonl").write_bytes(b"{}\n")
    assert identify_remote(a) != identify_remote(b)
    with pytest.raises(ConfigError, match="no raw data"):
        identify_remote(f"{(s3_folder / 'c').place}?{s3_folder.settings.query()}")


# Connections


class Unreliable(io.BytesIO):
    """A file that fails as it is told to: one entry a read, None for one that works."""

    def __init__(self, data: bytes, failures: list[BaseException | None]) -> None:
        super().__init__(data)
        self.failures = failures

    def size(self) -> int:
        return len(self.getbuffer())

    def read(self, size: int | None = -1, /) -> bytes:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return super().read(size)


def remote(data: bytes, failures: list[BaseException | None]) -> pa.NativeFile:
    raw = RemoteFile("s3://bucket/a.bin", lambda: Unreliable(data, failures))
    return pa.PythonFile(io.BufferedReader(raw, 64), mode="r")


def test_reads_go_on_where_they_were_after_a_failure(impatient):
    data = bytes(range(256)) * 8
    failures: list[BaseException | None] = [OSError("reset"), None, OSError("reset"), TimeoutError("slow")]
    file = remote(data, failures)
    assert file.size() == len(data)
    assert file.read(100) == data[:100]
    file.seek(1000)
    assert file.read(500) == data[1000:1500]
    assert file.read() == data[1500:]
    assert file.read(1) == b""
    assert failures == []


def test_a_store_that_stays_away_is_no_broken_record(impatient):
    file = remote(b"x" * 100, [OSError("reset")] * 99)
    with pytest.raises(TransferError, match="6 attempts") as caught:
        file.read(10)
    assert not isinstance(caught.value, OSError | pa.ArrowException), "readers catch these"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_answer_that_is_cut_short_is_asked_for_again(impatient):
    served = [b"x" * 50, b"x" * 100]

    class Short(Unreliable):
        def read(self, size: int | None = -1, /) -> bytes:
            return served.pop(0)[:size]

    raw = RemoteFile("s3://bucket/a.bin", lambda: Short(b"x" * 100, []))
    assert raw.readall() == b"x" * 100


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("a"), FileNotFoundError),
        (PermissionError("a"), StoreError),
        (KeyError("a"), KeyError),
    ],
)
def test_what_another_attempt_cannot_mend_is_not_attempted_again(error, kind):
    calls = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(kind):
        attempt("s3://bucket/a.bin", action)
    assert len(calls) == 1


def test_files_are_listed_once_and_a_copy_lists_anew(tmp_path):
    (tmp_path / "b.txt").write_text("")
    files = Files(str(tmp_path))
    assert files.names(".txt") == ["b.txt"]
    (tmp_path / "a.txt").write_text("")
    assert files.names(".txt") == ["b.txt"]
    assert pickle.loads(pickle.dumps(files)).names((".txt", ".md")) == ["a.txt", "b.txt"]
