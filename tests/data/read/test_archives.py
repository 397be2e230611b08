"""Pictures, videos and records inside a corpus's archives: found without unpacking, reading little else."""

from __future__ import annotations

import io
import json
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from casa_core.errors import DataError
from pipelines.data.read import Reader, Record, open_reader
from pipelines.data.read.source.archives import NotUnpacked
from pipelines.data.read.source.files import Files
from pipelines.data.store.quarantine import Rejected
from tests.support.data.corpus import finevision_row, reasons, write_finevision, write_jsonl
from tests.support.data.hub import running_hub
from tests.support.data.layouts import video_item, write_array, write_tar
from tests.support.data.media import counting_video

CONTENT = {"a/0.png": b"first" * 50, "a/deep/1.png": b"second", "top.png": b""}


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def results(reader: Reader) -> list[Record | Rejected]:
    return [
        result for span in reader.spans("train") for result in pickle.loads(pickle.dumps(reader)).read(span)
    ]


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar"])
def test_a_member_is_read_where_unpacking_would_put_it(tmp_path, kind):
    if kind == "tar":
        write_tar(tmp_path / "sub" / "photos.tar", list(CONTENT.items()))
    else:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        write_zip(tmp_path / "sub" / "photos.zip", CONTENT, method)
    files = Files(str(tmp_path))
    suffix = "tar" if kind == "tar" else "zip"
    for folder in ("sub", "sub/photos", f"sub/photos.{suffix}"):
        assert {name: files.read(f"{folder}/{name}") for name in CONTENT} == CONTENT
    assert files.read("a/deep/1.png") == b"second"  # no other archive has it
    with files.open("sub/a/0.png") as file:
        file.seek(5)
        assert (file.read(5), file.size()) == (b"first", 250)
    for name in ("sub/a", "sub/b.png", "b.png"):
        with pytest.raises(FileNotFoundError):
            files.read(name)


def test_a_file_that_lies_unpacked_comes_first_and_an_ambiguous_name_is_none(tmp_path):
    write_zip(tmp_path / "x" / "1.zip", {"a.png": b"one", "b.png": b"1"})
    write_zip(tmp_path / "x" / "2.zip", {"a.png": b"two", "b.png": b"2"})
    (tmp_path / "x" / "a.png").write_bytes(b"plain")
    files = Files(str(tmp_path))
    assert files.read("x/a.png") == b"plain"
    assert files.read("x/1/a.png") == b"one"
    with pytest.raises(FileNotFoundError):
        files.read("b.png")


def test_records_in_a_zip_are_read_with_the_pictures_beside_them(tmp_path):
    lines = "".join(json.dumps({"image": f"a/{n}.png", "caption": str(n)}) + "\n" for n in range(3))
    members = {"train.jsonl": lines.encode(), "test.jsonl": lines.encode()}
    write_zip(tmp_path / "photos.zip", members | {f"a/{n}.png": b"x%d" % n for n in range(3)})
    reader = open_reader("image_text", str(tmp_path), "corpus", {})
    found = results(reader)
    assert [record.media[0].data for record in found if isinstance(record, Record)] == [b"x0", b"x1", b"x2"]
    assert reader.inventory().splits["test"] == ("photos.zip/test.jsonl",)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train.jsonl").write_text(lines)
    again = open_reader("image_text", str(tmp_path), "corpus", {}).inventory()
    assert again.splits["train"] == ("photos/train.jsonl",), "what is unpacked is not read twice"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_finevision_in_a_zip_is_read(tmp_path, method):
    path = write_finevision(tmp_path / "0.parquet", [finevision_row()] * 30, row_group_size=10)
    write_zip(tmp_path / "corpus" / "ramps.zip", {"ramps/train-0.parquet": path.read_bytes()}, method)
    reader = open_reader("finevision", str(tmp_path / "corpus"), "corpus", {})
    assert reasons(results(reader)) == [None] * 30
    assert reader.inventory().summary() == ""


def test_videos_lie_in_the_tar_and_zip_parts_of_their_subset(tmp_path):
    video = counting_video(tmp_path / "a.mp4")
    config = tmp_path / "corpus" / "0_30_s_academic_v0_1"
    items = [video_item(f"academic_source/Charades/{name}.mp4") for name in "abc"]
    write_array(config / "0_30_s_academic_v0_1_cap_processed.json", items)
    write_tar(config / "0_30_s_academic_v0_1_videos_1.tar", [("academic_source/Charades/a.mp4", video)])
    write_zip(config / "0_30_s_academic_v0_1_videos_2.zip", {"academic_source/Charades/b.mp4": video})
    reader = open_reader("llava_video", str(tmp_path / "corpus"), "corpus", {})
    assert reasons(results(reader)) == [None, None, "missing_video"]
    assert reader.inventory().summary() == ""
    (config / "0_30_s_academic_v0_1_videos_3.tar.gz").write_bytes(b"x")
    packed = open_reader("llava_video", str(tmp_path / "corpus"), "corpus", {})
    assert packed.inventory().summary() == "not read: 1 .tar.gz"
    with pytest.raises(NotUnpacked, match="gunzip"):
        Files(str(tmp_path / "corpus")).read("gone.mp4")
    missing = results(packed)[-1]
    assert isinstance(missing, Rejected)
    assert "gunzip them once" in missing.detail


def test_a_tar_of_pictures_alone_serves_the_records_beside_it(tmp_path):
    write_tar(tmp_path / "images.tar", [("images/0.png", b"x")])
    alone = open_reader("image_text", str(tmp_path), "corpus", {})
    assert alone.inventory().splits["train"] == ("images.tar",)
    write_jsonl(tmp_path / "a.jsonl", [{"image": "images/0.png", "caption": "a"}], seeks=False)
    reader = open_reader("image_text", str(tmp_path), "corpus", {})
    assert reader.inventory().splits["train"] == ("a.jsonl",)
    assert reasons(results(reader)) == [None]


@pytest.mark.parametrize("damage", ["cut", "none", "encrypted", "crc"])
def test_a_damaged_zip_is_named_and_a_damaged_member_is_missing(tmp_path, damage):
    path = write_zip(tmp_path / "photos.zip", CONTENT, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    if damage == "encrypted":
        at = data.index(b"PK\x01\x02")
        data[at + 8] |= 1
    if damage == "crc":
        data[data.index(b"first")] ^= 1
    path.write_bytes(data[:-30] if damage == "cut" else b"x" * 99 if damage == "none" else data)
    files = Files(str(tmp_path))
    if damage in ("cut", "none"):
        with pytest.raises(DataError, match=r"photos\.zip cannot be read"):
            files.names(".jsonl")
        return
    with pytest.raises(OSError, match=r"photos\.zip|No such file|Failed to open"):
        files.read("a/0.png")
    assert files.read("a/deep/1.png") == b"second"


def test_members_that_lead_out_or_are_hidden_or_links_are_left_out(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in (
            "../out.png",
            "a/../../out.png",
            "__MACOSX/._a.png",
            ".hidden.png",
            "./b\\c.png",
            "/d.png",
        ):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    assert sorted(Files(str(tmp_path)).index("a.tar")) == ["./b\\c.png".removeprefix("./"), "d.png"]


def test_planning_and_finding_read_headers_and_not_what_lies_between(tmp_path, monkeypatch):
    members = [
        (f"{n:03d}.{kind}", data)
        for n in range(40)
        for kind, data in (("png", b"x" * 200_000), ("txt", b"a"))
    ]
    write_tar(tmp_path / "image_text" / "0.tar", members)
    size = (tmp_path / "image_text" / "0.tar").stat().st_size
    with running_hub(tmp_path) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        reader = open_reader("image_text", "hf://datasets/org/pictures/image_text", "corpus", {})
        assert sum(span.records for span in reader.spans("train")) == 40
        ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", asked) for _, _, asked, _ in hub.requests if asked]
        read = sum(int(found[2]) - int(found[1]) + 1 for found in ranges if found)
        assert ranges
        assert read < 0.05 * size
