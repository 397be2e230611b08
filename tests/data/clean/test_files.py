"""Files that cannot be read, or that nobody reads: counted as files, named, never taken for bad records."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from casa_core.errors import ConfigError, DataError, TransferError
from pipelines.data.clean.losses import losses_of
from pipelines.data.clean.run import plan
from pipelines.data.read import open_reader
from pipelines.data.read.source.files import Files
from pipelines.storage import retry
from tests.support.data.corpus import finevision_row, write_finevision, write_jsonl
from tests.support.data.layouts import video_item, write_array, write_tar


def lost(folder: Path, reader: str = "finevision") -> Any:
    opened = open_reader(reader, str(folder), "corpus", {})
    spans = [span for split in ("train", "test") for span in opened.spans(split)]
    return losses_of(spans, opened.inventory().sizes.__getitem__)


def parquet_files(folder: Path, count: int = 4, rows: int = 50) -> list[Path]:
    return [
        write_finevision(folder / f"train-{n}.parquet", [finevision_row()] * rows, row_group_size=25)
        for n in range(count)
    ]


@pytest.mark.parametrize("size", [0, 100, None], ids=["empty", "cut short", "cut at its end"])
def test_a_file_without_a_footer_counts_with_the_records_it_should_hold(tmp_path, size):
    *_, broken = parquet_files(tmp_path)
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) - 8 if size is None else size])
    found = lost(tmp_path)
    assert (found.files, found.of) == (("train-3.parquet",), 150)
    assert found.records == pytest.approx(50, abs=1)
    with pytest.raises(DataError, match=r"about 50 of 200 records with 1 file .*\n.*train-3\.parquet"):
        found.check("corpus", 0.1)
    found.check("corpus", 0.3)
    assert found.left_of(0.3) == pytest.approx((0.3 * 200 - 50) / 150)


def test_half_a_corpus_cannot_vanish_under_one_percent(tmp_path):
    for path in parquet_files(tmp_path, count=10, rows=25)[5:]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="5 files that cannot be read"):
        lost(tmp_path).check("corpus", 0.4)


def test_an_archive_that_breaks_off_counts_with_the_samples_behind_the_break(tmp_path):
    members = [(f"{n:04d}.{kind}", b"a" * 400) for n in range(100) for kind in ("txt", "png")]
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", members)
    data = (tmp_path / "2.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(data[: len(data) // 4])
    found = lost(tmp_path, "image_text")
    assert found.files == ("2.tar",)
    assert found.records == pytest.approx(75, abs=3)


def test_an_array_that_breaks_off_and_a_corpus_of_nothing_but_damage(tmp_path):
    write_array(tmp_path / "a_cap.json", [video_item()] * 40)
    whole = (tmp_path / "a_cap.json").read_bytes()
    (tmp_path / "b_cap.json").write_bytes(whole[: len(whole) // 2])
    assert lost(tmp_path, "llava_video").records == pytest.approx(20, abs=1)
    (tmp_path / "a_cap.json").write_bytes(b"[")
    (tmp_path / "b_cap.json").write_bytes(b"[")
    with pytest.raises(DataError, match="loses every record"):
        lost(tmp_path, "llava_video").check("corpus", 0.5)


def test_nothing_to_train_on_is_explained_by_what_is_there(tmp_path):
    for name in ("a.csv", "b.csv", "0.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"not read: 2 \.csv"):
        plan(open_reader("image_text", str(tmp_path), "corpus", {}))
    write_jsonl(tmp_path / "val.jsonl", [{"caption": "a"}], seeks=False)
    with pytest.raises(ConfigError, match="1 held out by their names"):
        plan(open_reader("image_text", str(tmp_path), "corpus", {}))


# The machine's errors


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Runs the block with the rights of a user who owns nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)


@pytest.fixture
def open_folder(tmp_path) -> Path:
    """A folder that every user may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(tempfile.gettempdir()) and str(folder) != tempfile.gettempdir():
            folder.chmod(0o755)
    return tmp_path


def test_a_file_without_permission_stops_the_run(open_folder):
    parquet_files(open_folder, count=2)
    (open_folder / "train-1.parquet").chmod(0)
    with as_nobody(), pytest.raises(TransferError, match=r"train-1\.parquet is there and cannot be read"):
        lost(open_folder)


def test_a_picture_without_permission_is_no_missing_picture(open_folder):
    (open_folder / "0.png").write_bytes(b"x")
    (open_folder / "0.png").chmod(0)
    write_jsonl(open_folder / "a.jsonl", [{"image": "0.png", "caption": "a"}], seeks=False)
    reader = open_reader("image_text", str(open_folder), "corpus", {})
    with as_nobody(), pytest.raises(TransferError, match=r"0\.png is there"):
        [list(reader.read(span)) for span in reader.spans("train")]


def test_a_folder_without_permission_is_not_passed_over(open_folder):
    parquet_files(open_folder / "sub", count=1)
    (open_folder / "sub").chmod(0)
    with as_nobody(), pytest.raises(TransferError, match="Permission"):
        open_reader("finevision", str(open_folder), "corpus", {}).inventory()
    (open_folder / "sub").chmod(0o755)


class Failing(io.BytesIO):
    """A file of a shared folder that fails from a byte on."""

    def __init__(self, data: bytes, number: int, good: int) -> None:
        super().__init__(data)
        self._number, self._good = number, good

    def size(self) -> int:
        return len(self.getbuffer())

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= self._good:
            raise OSError(self._number, os.strerror(self._number))
        return super().read(size)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("name", ["a.parquet", "b.jsonl", "c.tar", "d.json"])
def test_a_shared_folder_that_fails_on_the_way_stops_the_run(tmp_path, monkeypatch, number, name):
    write_finevision(tmp_path / "a.parquet", [finevision_row()] * 50)
    write_jsonl(tmp_path / "b.jsonl", [{"caption": "a"}] * 50, seeks=False)
    write_tar(tmp_path / "c.tar", [(f"{n}.txt", b"a") for n in range(50)])
    write_array(tmp_path / "d.json", [{"caption": "a"}] * 50)
    reader = open_reader("image_text", str(tmp_path), "corpus", {})
    spans = [span for span in reader.spans("train") if span.file == name]
    data = (tmp_path / name).read_bytes()

    def failing(good: int) -> None:
        handle = lambda self, name: pa.PythonFile(Failing(data, number, good), mode="r")  # noqa: E731
        monkeypatch.setattr(Files, "_handle", handle)

    failing(0)
    with pytest.raises(TransferError, match=os.strerror(number)):
        [list(reader.read(span)) for span in spans]
    with pytest.raises(TransferError, match=os.strerror(number)):
        list(open_reader("image_text", str(tmp_path), "corpus", {}).spans("train"))
