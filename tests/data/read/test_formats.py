"""What readers stand on: arrays, lines and archives found by byte offset, however they are cut or broken."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.errors import DataError
from pipelines.data.read import READERS, REASONS, open_reader
from pipelines.data.read.formats import json_array, lines, parquet, tar_shards
from pipelines.data.read.formats.json_array import array_items, array_spans
from pipelines.data.read.formats.lines import json_lines, line_spans
from pipelines.data.read.formats.tar_shards import tar_groups, tar_spans
from pipelines.data.read.source.base import BadRecord, collect
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.record_paths import inner_paths
from pipelines.data.store.quarantine import Rejected
from tests.support.data.corpus import write_jsonl
from tests.support.data.layouts import write_array, write_every_layout, write_tar

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def read_array(folder, name="a.json"):
    """The items of one file, None for each that is broken."""
    files = Files(str(folder))
    spans = array_spans(files, [name], 0)
    found = []
    for span in spans:
        items = list(array_items(files, span))
        assert (span.start, len(items)) == (len(found), span.records)
        found += [None if isinstance(item, BadRecord) else item for item in items]
    return found


@settings(deadline=None, max_examples=30)
@given(
    items=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=9),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_an_array_is_found_whatever_the_pieces_it_is_read_in(
    tmp_path_factory, items, chunk, indent, ascii_only
):
    folder = tmp_path_factory.mktemp("array")
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    (folder / "a.json").write_bytes(f" {text}\n".encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        patch.setattr(json_array, "RECORDS_PER_SPAN", 3)
        assert read_array(folder) == items


def test_an_array_that_breaks_off_loses_only_what_is_behind(tmp_path):
    items = [{"id": n, "text": 'Größe ]},[{ " \\'} for n in range(4)]
    whole = json.dumps(items, ensure_ascii=False).encode()
    ends = [len(json.dumps(items[: n + 1], ensure_ascii=False).encode()) - 1 for n in range(4)]
    for cut in range(len(whole)):
        (tmp_path / "a.json").write_bytes(whole[:cut])
        assert read_array(tmp_path) == [*items[: sum(end <= cut for end in ends)], None]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"[1 2]", b"[1,]", b"[" * 5000, b"\xff\xfe", b'["a" "b"]']
)
def test_what_is_no_array_is_one_bad_record_after_its_good_items(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    assert read_array(tmp_path)[-1] is None


def test_bytes_that_are_no_text_cost_their_own_item(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"id": "a"}, {"id": "\xff"}, {"id": "c"}]')
    first, second, third = read_array(tmp_path)
    assert (first, third) == ({"id": "a"}, {"id": "c"})
    with pytest.raises(UnicodeEncodeError):
        second["id"].encode()


def test_an_item_without_end_is_not_collected_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "_CHUNK", 1000)
    monkeypatch.setattr(json_array, "LARGEST_ITEM", 5000)
    (tmp_path / "a.json").write_text('[{"a": 1}, {"b": "' + "x" * 100_000)
    with Files(str(tmp_path)).open("a.json") as file:
        ends, whole = json_array._Scanner(file).run()
        assert (len(ends), whole, file.tell() < 8000) == (2, False, True)


# JSON lines


@pytest.mark.parametrize("seeks", [True, False])
def test_lines_are_found_in_pieces_of_any_size(tmp_path, monkeypatch, seeks):
    records = [{"n": n, "text": "ä€𝄞"[: n % 4] * n} for n in range(9)]
    write_jsonl(tmp_path / "a.jsonl", records, seeks=seeks, ascii_only=False)
    monkeypatch.setattr(lines, "RECORDS_PER_SPAN", 2)
    for chunk in range(1, 60):
        monkeypatch.setattr(lines, "_CHUNK", chunk)
        files = Files(str(tmp_path))
        spans = line_spans(files, ["a.jsonl"], 0)
        assert [item for span in spans for item in json_lines(files, span)] == records


def test_a_file_without_records_may_still_end_in_its_empty_list_of_offsets(tmp_path):
    (tmp_path / "a.jsonl").write_text("[]")
    (tmp_path / "b.jsonl").write_text("")
    assert line_spans(Files(str(tmp_path)), ["a.jsonl", "b.jsonl"], 0) == []


# Tar files

MEMBERS = [(f"{n:04d}.{suffix}", bytes([n]) * 700) for n in range(5) for suffix in ("png", "json")]


def read_tar(folder, name="a.tar"):
    """Keys and members of the samples, None for each that is broken."""
    files = Files(str(folder))
    found = []
    for span in tar_spans(files, [name]):
        groups = list(tar_groups(files, span))
        assert (span.start, len(groups)) == (len(found), span.records)
        found += [None if isinstance(group, BadRecord) else (group.key, group.members) for group in groups]
    return found


@pytest.mark.parametrize("per_span", [1, 2, 64])
def test_members_with_one_key_are_a_sample_in_whichever_span(tmp_path, monkeypatch, per_span):
    monkeypatch.setattr(tar_shards, "RECORDS_PER_SPAN", per_span)
    long = "deep/" * 30 + "x" * 80  # needs a header of its own for its name
    write_tar(tmp_path / "a.tar", [*MEMBERS, (f"{long}.seg.PNG", b"1"), (f"{long}.txt", b"2")])
    expected = [
        (f"{n:04d}", {f"{n:04d}.{end}": bytes([n]) * 700 for end in ("png", "json")}) for n in range(5)
    ]
    assert read_tar(tmp_path) == [*expected, (long, {f"{long}.seg.PNG": b"1", f"{long}.txt": b"2"})]


def test_a_cut_archive_is_noticed_at_every_block(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", MEMBERS).read_bytes()
    body = len(MEMBERS) * 3 * 512
    for cut in range(0, body + 1, 256):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        found = read_tar(tmp_path)
        assert found[-1] is None
        assert len(found) - 1 == -(-(cut // 1536) // 2)


def test_a_damaged_header_in_the_middle_does_not_pass_for_the_end(tmp_path):
    data = bytearray(write_tar(tmp_path / "a.tar", MEMBERS).read_bytes())
    data[4 * 1536 + 100] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    assert [entry and entry[0] for entry in read_tar(tmp_path)] == ["0000", "0001", None]


def test_a_member_that_claims_more_than_there_is_is_not_believed(tmp_path):
    entry = tarfile.TarInfo("0000.png")
    entry.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(entry.tobuf() + b"\0" * 4096)
    assert read_tar(tmp_path) == [None]
    (tmp_path / "a.tar").write_bytes(b"")
    assert read_tar(tmp_path) == [None]


# Parquet


def test_rows_before_damaged_pages_are_kept_and_the_other_row_groups_too(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_BATCH", 5)
    table = pa.table({"id": [f"{n:01000d}" for n in range(60)]})
    plain = {"data_page_size": 5000, "use_dictionary": False, "compression": "none"}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30, **plain)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 600] = b"\xff" * 600
    (tmp_path / "a.parquet").write_bytes(data)
    files = Files(str(tmp_path))
    first, second = parquet.parquet_spans(files, ["a.parquet"])
    rows = list(parquet.parquet_rows(files, first, needed=("id",)))
    good = [row["id"] for row in rows if not isinstance(row, BadRecord)]
    assert len(rows) == 30
    assert good == [f"{n:01000d}" for n in range(len(good))]
    assert 0 < len(good) < 30
    assert (
        len([row for row in parquet.parquet_rows(files, second, needed=("id",)) if isinstance(row, dict)])
        == 30
    )


def test_a_text_that_is_not_utf8_costs_its_own_row(tmp_path):
    bad = pa.array([b"good", b"\xff\xfe", b"also good"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": bad}), tmp_path / "a.parquet")
    files = Files(str(tmp_path))
    (span,) = parquet.parquet_spans(files, ["a.parquet"])
    rows = list(parquet.parquet_rows(files, span, needed=("id",)))
    assert [row.reason if isinstance(row, BadRecord) else row["id"] for row in rows] == [
        "good",
        "bad_encoding",
        "also good",
    ]


# Damage anywhere


@pytest.mark.parametrize("reader", READERS)
def test_damage_at_any_place_is_set_aside_with_a_documented_reason(tmp_path, reader):
    """40 damaged files a reader: cut, noise, and single bytes changed."""
    write_every_layout(tmp_path)
    folder = tmp_path / reader
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for seed in range(40):
        rng = random.Random(f"{reader}/{seed}")
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        found = reasons_or_refusal(reader, folder)
        # Where the list of offsets contradicts its file, no line of it can be trusted: that is for people.
        assert "offsets in the last line" in found if isinstance(found, str) else found <= REASONS.keys()
        path.write_bytes(whole)


def reasons_or_refusal(reader: str, folder: Path) -> set[str] | str:
    opened = open_reader(reader, str(folder), "corpus", {})
    reasons = set()
    try:
        for span in opened.spans("train"):
            results = list(opened.read(span))
            assert len(results) == span.records
            reasons |= {result.reason for result in results if isinstance(result, Rejected)}
    except DataError as error:
        return error.what
    return reasons


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes cut, or replaced by noise, or some of them changed."""
    how = rng.random()
    if how < 0.3 or not data:
        return data[: rng.randrange(len(data) + 1)]
    if how < 0.4:
        return rng.randbytes(len(data))
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


# What every reader does with its rows


def test_a_text_that_unicode_does_not_have_is_set_aside_and_can_be_stored(tmp_path):
    write_array(tmp_path / "a.json", [{"text": "\ud83d"}, {"text": "fine"}])
    files = Files(str(tmp_path))
    (span,) = array_spans(files, ["a.json"], 0)

    def parse(place, item):
        return place.record((), (), item)

    bad, good = collect("s", span, array_items(files, span), parse, own_id=lambda item: item["text"])
    assert (bad.reason, bad.sample_id) == ("bad_encoding", "\\ud83d@a/0")
    assert good.sample.sample_id == "fine@a/1"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/etc/passwd", "bad_path"),
        ("a/../../../b.png", "bad_path"),
        ("https://host/a.png", "remote_image"),
        ("", "bad_record"),
        (None, "bad_record"),
        ("a\0b", "bad_record"),
        ("\udcca", "bad_encoding"),
    ],
)
def test_a_path_that_leads_out_of_the_corpus_is_refused(path, reason):
    with pytest.raises(BadRecord) as caught:
        inner_paths("/corpus", path, "folder")
    assert caught.value.reason == reason
    assert inner_paths("/corpus", "a/b.png", "folder") == ("folder/a/b.png", "a/b.png")
