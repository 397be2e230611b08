"""Text files as editors, Windows and packers leave them: marks, blank lines, other encodings, gzip."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipelines.data.read import Record, open_reader
from pipelines.data.read.formats import lines
from pipelines.data.read.formats.lines import json_lines, line_spans
from pipelines.data.read.source.base import BadRecord
from pipelines.data.read.source.files import Files
from pipelines.data.store.quarantine import Rejected
from tests.support.data.corpus import reasons
from tests.support.data.layouts import video_item

MARK = b"\xef\xbb\xbf"
RECORDS = [{"n": n, "caption": "Größe " * n} for n in range(5)]
PLAIN = [json.dumps(record, ensure_ascii=False).encode() for record in RECORDS]


def found_in(folder: Path, name: str = "a.jsonl") -> list[object]:
    files = Files(str(folder))
    found: list[object] = []
    for span in line_spans(files, [name], 0):
        results = list(json_lines(files, span))
        assert (span.start, span.records) == (len(found), len(results))
        found += [result.reason if isinstance(result, BadRecord) else result for result in results]
    return found


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "data",
    [
        MARK + b"\n".join(PLAIN),
        b"\r\n".join(PLAIN) + b"\r\n\r\n",
        b"\n\n" + b"\n \t\n\n".join(PLAIN) + b"\n\n\n",
        MARK + b"\r\n" + b"\r\n".join(PLAIN),
        b"\n".join(PLAIN) + b"\n   ",
    ],
    ids=["mark", "crlf", "blank", "mark-crlf", "blank-end"],
)
def test_marks_and_blank_lines_are_no_records(tmp_path, monkeypatch, data, chunk):
    monkeypatch.setattr(lines, "RECORDS_PER_SPAN", 2)
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    (tmp_path / "a.jsonl").write_bytes(data)
    assert found_in(tmp_path) == RECORDS


@pytest.mark.parametrize("data", [b"", MARK, b"\n\r\n \n", MARK + b"\r\n"])
def test_a_file_of_blanks_has_no_records(tmp_path, data):
    (tmp_path / "a.jsonl").write_bytes(data)
    assert found_in(tmp_path) == []


def test_offsets_hold_in_a_file_with_a_mark_and_after_blank_lines(tmp_path):
    text = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    offsets = [1 + sum(len(line) + 1 for line in text[:n]) for n in range(len(text))]
    body = "\n".join([*text, json.dumps([0, *offsets[1:]])])
    (tmp_path / "a.jsonl").write_bytes(MARK + body.encode() + b"\n\n")
    assert found_in(tmp_path) == RECORDS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("reader", "name", "text"),
    [
        ("image_text", "a.jsonl", '{"caption": "a"}\n{"caption": "b"}\n'),
        ("image_text", "a.json", '[{"caption": "a"}]'),
        ("llava_video", "a_cap.json", json.dumps([video_item()])),
    ],
    ids=["lines", "array", "videos"],
)
def test_another_encoding_is_named_with_the_remedy(tmp_path, encoding, reader, name, text):
    (tmp_path / name).write_text(text, encoding=encoding)
    opened = open_reader(reader, str(tmp_path), "corpus", {})
    (span,) = opened.spans("train")
    (result,) = opened.read(span)
    assert isinstance(result, Rejected)
    assert result.reason == "bad_encoding"
    assert "iconv" in result.detail
    assert span.lost == (tmp_path / name).stat().st_size


def test_an_array_of_videos_may_begin_with_a_mark(tmp_path):
    data = MARK + b"\r\n" + json.dumps([video_item("gone.mp4"), video_item("gone.mp4")], indent=1).encode()
    (tmp_path / "a_cap.json").write_bytes(data)
    opened = open_reader("llava_video", str(tmp_path), "corpus", {})
    results = [result for span in opened.spans("train") for result in opened.read(span)]
    assert reasons(results) == ["missing_video"] * 2


def test_one_json_array_of_own_records_is_read_and_other_json_is_named(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps([{"caption": "a"}, {"caption": "b"}]))
    (tmp_path / "settings.json").write_text('{"a": 1}')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "0.json").write_text('[{"about": "0.png"}]')
    opened = open_reader("image_text", str(tmp_path), "corpus", {"pictures": "optional"})
    results = [result for span in opened.spans("train") for result in opened.read(span)]
    assert [result.sample.parts[-1].text for result in results if isinstance(result, Record)] == ["a", "b"]
    assert opened.inventory().unread == ("0.json", "numbers.json", "settings.json")


def test_packed_lines_are_read_from_their_start_as_one_span(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "RECORDS_PER_SPAN", 2)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(MARK + b"\n\n".join(PLAIN)))
    assert found_in(tmp_path, "a.jsonl.gz") == RECORDS
    assert len(line_spans(Files(str(tmp_path)), ["a.jsonl.gz"], 0)) == 1
    for name in ("a.ndjson.gz", "A.JSONLINES.GZ"):
        (tmp_path / name).write_bytes((tmp_path / "a.jsonl.gz").read_bytes())
        assert found_in(tmp_path, name) == RECORDS


@pytest.mark.parametrize(
    "data", [b"", b"no gzip", gzip.compress(b"{}\n{}\n")[:-9]], ids=["empty", "no gzip", "cut"]
)
def test_a_packed_file_that_breaks_off_is_noticed(tmp_path, data):
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    found = found_in(tmp_path, "a.jsonl.gz")
    assert found[-1:] == (["truncated_file"] if data else [])
