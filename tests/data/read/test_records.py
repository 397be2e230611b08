"""What a record says: its turns, its pictures, their names; and what becomes of it where that is wrong."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from casa_core.types import Image
from pipelines.data.read import Record
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.corpora.image_text import ImageTextReader
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from pipelines.data.read.source.base import BadRecord
from pipelines.data.read.source.record_paths import inner_paths
from pipelines.data.store.quarantine import Rejected
from tests.support.data.corpus import (
    PICTURE,
    finevision_row,
    live_record,
    read_all,
    reasons,
    write_finevision,
    write_jsonl,
)
from tests.support.data.layouts import IMAGE, image, write_rows

PAIRS = [{"user": "what is it?", "assistant": "a ramp"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    for name in ("0.png", "1.png", "sub/1.png"):
        (root / name).write_bytes(PICTURE)
    return root


def read_one(folder: Path, record: Any, **options: Any) -> Record | Rejected:
    write_jsonl(folder / "mine.jsonl", [record], seeks=False)
    (found,) = read_all(ImageTextReader, folder, **options)
    return found


def outline(found: Record | Rejected) -> str:
    """Parts in short: a letter of the role for a text, i for a picture."""
    assert isinstance(found, Record), found
    return "".join("i" if isinstance(part, Image) else part.role[0] for part in found.sample.parts)


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


# Turns


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "iua"),
        ([("human", "a"), ("gpt", "b"), ("gpt", "c")], "iua"),
        ([("USER", "a"), ("ASSISTANT", "b")], "iua"),
        ([("Human", "a"), ("model", "b"), ("user", "c"), ("bot", "d")], "iuaua"),
        ([("system", "be brief"), ("system", "be kind"), ("user", "a"), ("gpt", "b")], "siua"),
        ([("system", " "), ("user", "a"), ("system", ""), ("user", "b"), ("gpt", "c")], "iua"),
        ([("user", " "), ("user", "b"), ("gpt", "c")], "iua"),
        ([("user", ""), ("gpt", "c")], "ia"),
        ([("user", "a"), ("gpt", "the <image> tag"), ("user", "b"), ("gpt", "c")], "iuaua"),
    ],
)
def test_turns_of_one_role_are_one_and_roles_have_many_names(folder, turns, parts):
    assert outline(read_one(folder, {"image": "0.png", "conversations": chat(*turns)})) == parts


@pytest.mark.parametrize(
    ("turns", "reason", "detail"),
    [
        ([("gpt", "a"), ("user", "b"), ("gpt", "c")], "bad_turns", "the first is not the user's"),
        (
            [("user", "a"), ("gpt", "b"), ("user", "c")],
            "bad_turns",
            "the last is the user's, and has no answer",
        ),
        ([("user", "a"), ("system", "b"), ("gpt", "c")], "bad_turns", "a system text comes after"),
        ([("system", "a")], "bad_turns", "neither a question nor an answer"),
        ([("user", "a"), ("tool", "b"), ("gpt", "c")], "unknown_role", "turn 1 is by 'tool'"),
        ([("user", "a"), ("function", "b"), ("gpt", "c")], "unknown_role", "turn 1 is by 'function'"),
        ([("user", "a"), ("gpt", " ")], "missing_text", "the assistant's, is blank"),
        ([("user", "a"), ("gpt", "b"), ("user", " "), ("gpt", "c")], "missing_text", "the user's, is blank"),
    ],
)
def test_other_turns_are_set_aside_and_the_detail_says_which(folder, turns, reason, detail):
    found = read_one(folder, {"image": "0.png", "conversations": chat(*turns)})
    assert isinstance(found, Rejected)
    assert found.reason == reason
    assert detail in found.detail


# Where pictures stand, and the word <image>


def test_the_word_is_a_word_where_a_part_says_where_the_picture_is(folder):
    asked = "What does the <image> tag do?"
    content = [{"type": "image", "image": "0.png"}, {"type": "text", "text": asked}]
    found = read_one(
        folder,
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "nothing"}]},
    )
    assert outline(found) == "iua"
    assert found.sample.parts[1].text == asked


@pytest.mark.parametrize("pictures", [[], ["0.png"]])
def test_elsewhere_the_word_is_a_marker_and_one_too_many_names_the_escape(folder, pictures):
    asked = "<image>" * len(pictures) + "What does the <image> tag do?"
    record = {"images": pictures, "texts": [{"user": asked, "assistant": "nothing"}]}
    found = read_one(folder, record, pictures="optional")
    assert isinstance(found, Rejected)
    assert found.reason == "missing_image"
    assert "<image>" in found.detail
    assert "\\<image> where the word itself is meant" in found.detail
    record["texts"][0]["user"] = asked.replace("the <image>", "the \\<image>")
    found = read_one(folder, record, pictures="optional")
    assert isinstance(found, Record)
    assert found.sample.parts[-2].text == "What does the <image> tag do?"


def test_pictures_of_which_only_some_are_marked_are_set_aside(folder):
    found = read_one(
        folder, {"images": ["0.png", "1.png"], "texts": [{"user": "<image> and?", "assistant": "no"}]}
    )
    assert isinstance(found, Rejected)
    assert found.reason == "unplaced_image"


@pytest.mark.parametrize("field", ["url", "path", "image_url"])
def test_a_picture_as_a_part_is_named_by_any_of_its_fields(folder, field):
    content = [{"type": "image", field: "0.png"}, {"type": "text", "text": "what?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a ramp"}]
    write_jsonl(folder / "mine.jsonl", [{"messages": turns}, {"messages": turns, "images": ["1.png"]}])
    first, second = read_all(ImageTextReader, folder)
    assert outline(first) == "iua"
    assert isinstance(second, Rejected)  # which of the two is meant is not guessed


@pytest.mark.parametrize(
    ("indices", "reason"), [((0, 1), None), ((1, 0), "bad_record"), ((0, 0), "bad_record")]
)
def test_pictures_by_index_are_used_in_order_or_not_at_all(folder, indices, reason):
    content = [
        *({"type": "image", "text": None, "index": at} for at in indices),
        {"type": "text", "text": "?"},
    ]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a ramp"}]
    write_jsonl(folder / "mine.jsonl", [{"messages": turns, "images": ["0.png", "0.png"]}])
    assert reasons(read_all(ImageTextReader, folder)) == [reason]


@pytest.mark.parametrize("field", ["images", "image"])
def test_pictures_beside_a_turns_text_are_not_overlooked(folder, field):
    turns = [
        {"role": "user", "content": "what?", field: ["0.png"]},
        {"role": "assistant", "content": "a ramp"},
    ]
    write_jsonl(folder / "mine.jsonl", [{"messages": turns}])
    (found,) = read_all(ImageTextReader, folder, pictures="optional")
    assert isinstance(found, Rejected)
    assert found.reason == "misplaced_image"


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_a_picture_in_an_answer_does_not_move_to_the_question(folder, role):
    shown = [{"type": "text", "text": "here"}, {"type": "image", "image": "0.png"}]
    turns = [{"role": "user", "content": "draw"}, {"role": "assistant", "content": "well"}]
    turns.insert(0 if role == "system" else 2, {"role": role, "content": shown})
    found = read_one(folder, {"messages": turns})
    assert isinstance(found, Rejected)
    assert found.reason == "misplaced_image"
    assert f"the {role}'s" in found.detail


# Picture fields


@pytest.mark.parametrize("field", ["image", "images"])
@pytest.mark.parametrize("value", ["0.png", ["0.png"], ["0.png", "1.png"], {"path": "0.png"}])
def test_either_field_takes_one_picture_or_a_list(folder, field, value):
    found = read_one(folder, {field: value, "texts": PAIRS})
    assert outline(found) == "i" * (len(value) if isinstance(value, list) else 1) + "ua"


def test_a_file_name_is_the_picture_of_an_imagefolders_table_and_only_there(folder):
    assert outline(read_one(folder, {"file_name": "0.png", "text": "a ramp"}, caption_prompt="")) == "ia"
    both = read_one(folder, {"file_name": "gone.png", "image": "0.png", "text": "a ramp"}, caption_prompt="")
    assert outline(both) == "ia"
    assert read_one(folder, {"file_name": "gone.png", "text": "a ramp"}).reason == "missing_image"


@pytest.mark.parametrize("field", ["image", "images"])
def test_and_so_do_parquet_columns(folder, field):
    kinds = {
        "string": (pa.string(), "0.png"),
        "strings": (pa.list_(pa.string()), ["0.png", "1.png"]),
        "bytes": (pa.binary(), PICTURE),
        "bytes list": (pa.list_(pa.binary()), [PICTURE, PICTURE]),
        "struct": (IMAGE, image()),
        "structs": (pa.list_(IMAGE), [image(), image(None, "0.png")]),
    }
    for name, (kind, value) in kinds.items():
        schema = pa.schema([(field, kind), ("caption", pa.string())])
        write_rows(folder / f"{name}.parquet", [{field: value, "caption": "a ramp"}], schema)
    found = read_all(ImageTextReader, folder)
    assert sorted(outline(record) for record in found) == ["iiua"] * 3 + ["iua"] * 3


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"images": [["0.png"]]}, "bad_record", "image 0 is a list; expected a path, bytes or a data URI"),
        ({"image": "0.png", "images": ["1.png"]}, "bad_record", "pictures in both image and images"),
        ({"images": ["0.png", None]}, "missing_image", "image 1 is empty"),
        ({"image": None}, "missing_image", "`pictures: optional`"),
        ({"images": []}, "missing_image", "`pictures: optional`"),
        ({}, "missing_image", "`pictures: optional`"),
        ({"image_path": "0.png"}, "missing_image", "from image or images, not from image_path"),
        ({"img": "0.png"}, "missing_image", "not from img"),
        ({"image_url": "https://a/0.png"}, "missing_image", "not from image_url"),
        ({"Picture": {"bytes": None, "path": "0.png"}}, "missing_image", "not from Picture"),
        ({"path": "0.png"}, "missing_image", "not from path"),
        ({"video": "a.mp4"}, "missing_image", "not from video"),
        ({"image_base64": "iVBORw0KGgoAAAANSUhEUg" * 9}, "missing_image", "not from image_base64"),
    ],
)
def test_a_record_without_its_picture_is_never_trained_as_text(folder, record, reason, detail):
    found = read_one(folder, {**record, "texts": PAIRS})
    assert isinstance(found, Rejected)
    assert found.reason == reason
    assert detail in found.detail


def test_a_source_that_declares_it_may_have_texts_alone_but_no_misspelt_pictures(folder):
    for record in ({}, {"image": None}, {"images": []}, {"image_id": 7, "image_width": 640}):
        assert outline(read_one(folder, {**record, "texts": PAIRS}, pictures="optional")) == "ua"
    for record in ({"image_path": "0.png"}, {"images": [None]}, {"image_list": ["a/0.jpg"]}):
        found = read_one(folder, {**record, "texts": PAIRS}, pictures="optional")
        assert isinstance(found, Rejected)
        assert found.reason == "missing_image"


def test_a_misspelt_column_and_misspelt_texts_are_named(folder):
    schema = pa.schema([("img_path", pa.string()), ("caption", pa.string())])
    write_rows(folder / "a.parquet", [{"img_path": "0.png", "caption": "a ramp"}], schema)
    (found,) = read_all(ImageTextReader, folder)
    assert isinstance(found, Rejected)
    assert "not from img_path" in found.detail
    (folder / "a.parquet").unlink()
    found = read_one(folder, {"image": "0.png", "question": "what?", "answer": "a ramp"})
    assert isinstance(found, Rejected)
    assert found.reason == "missing_text"
    assert "it has image, question, answer" in found.detail


def test_finevision_rows_may_be_text_alone_and_keep_the_order_of_their_markers(tmp_path):
    rows = [
        finevision_row(images=None),
        finevision_row(images=[PICTURE, PICTURE], turns=[("Before: <image> After: <image>?", "up")]),
    ]
    write_finevision(tmp_path / "train-0.parquet", rows)
    assert [outline(record) for record in read_all(FineVisionReader, tmp_path)] == ["ua", "uiuiua"]


# Names of files


def test_a_path_inside_the_root_is_read_however_it_is_written(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    accented = "caf\u00e9 1.png"
    (folder / unicodedata.normalize("NFD", accented)).write_bytes(PICTURE)
    written = [
        *("sub\\1.png", "sub/../0.png", "./0.png", "sub//1.png", "sub/./1.png"),
        *(f"{folder}/sub/1.png", f"file://{folder}/sub/1.png", f"{link}/0.png", f"{folder}/sub/../0.png"),
        *(accented, accented.replace(" ", "%20"), f"file://{folder}/caf%C3%A9%201.png"),
    ]
    records = [{"image": path, "caption": "a ramp"} for path in written]
    write_jsonl(folder / "mine.jsonl", records, seeks=False)
    for root in (folder, link):
        assert reasons(read_all(ImageTextReader, root)) == [None] * len(written)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../0.png",
            "sub/../../0.png",
            "..\\0.png",
            "C:\\data\\0.png",
            "\\\\server\\share\\0.png",
            "D:/0.png",
        ),
        *("/etc/hostname", "file:///etc/hostname", "s3://other/0.png", "%2e%2e/0.png", "/0.png"),
    ],
)
def test_a_path_that_leads_out_is_refused_with_the_remedy(folder, path):
    (folder.parent / "0.png").write_bytes(PICTURE)
    found = read_one(folder, {"image": path, "caption": "a ramp"})
    assert isinstance(found, Rejected)
    assert found.reason == "bad_path"
    assert "name files relative to" in found.detail


def test_letter_case_counts(folder):
    found = read_one(folder, {"image": "0.PNG", "caption": "a ramp"})
    assert isinstance(found, Rejected)
    assert found.reason == "missing_image"


def test_uris_of_the_roots_own_bucket_and_prefix_are_inside(folder):
    root = "s3://bucket/prefix"
    assert inner_paths(root, "s3://bucket/prefix/a/0.png") == ("a/0.png",)
    for path in (
        "s3://bucket/prefixed/0.png",
        "s3://bucket/0.png",
        "s3://bucket/prefix/../0.png",
        "/a/0.png",
    ):
        with pytest.raises(BadRecord) as caught:
            inner_paths(root, path)
        assert caught.value.reason == "bad_path"
    with pytest.raises(BadRecord) as caught:
        inner_paths(root, "HTTPS://bucket/0.png")
    assert caught.value.reason == "remote_image"


# WebDataset


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = len(data), kind, link
    entry.pax_headers = {"comment": "x" * 600} if "pax" in name else {}
    return entry


TEXT, JPEG = b"a ramp", PICTURE
ODD_SAMPLES: list[tuple[str, list[tuple[Any, ...]], str]] = [
    ("plain", [("00.jpg", JPEG), ("00.txt", TEXT)], "iua"),
    ("large letters", [("01.JPG", JPEG), ("01.TXT", TEXT)], "iua"),
    ("tags", [("02.input.jpg", JPEG), ("02.outputs.txt", TEXT)], "iua"),
    ("two pictures", [("03.left.png", JPEG), ("03.right.png", JPEG), ("03.txt", TEXT)], "iiua"),
    ("dots in the key", [("v1.2_04.jpg", JPEG), ("v1.2_04.txt", TEXT)], "iua"),
    ("and the next", [("v1.2_05.jpg", JPEG), ("v1.2_05.txt", TEXT)], "iua"),
    ("dots, no text", [("v2.2_06.jpg", JPEG)], "missing_text"),
    (".jfif", [("07.jfif", JPEG), ("07.txt", TEXT)], "iua"),
    (".jpe", [("08.jpe", JPEG), ("08.txt", TEXT)], "iua"),
    (".heic", [("09.heic", b"\0\0\0\x18ftypheic"), ("09.txt", TEXT)], "iua"),  # not_an_image, in clean
    ("no suffix", [("10", JPEG), ("10.txt", TEXT)], "iua"),
    ("unknown suffix", [("11.bin", JPEG), ("11.txt", TEXT)], "iua"),
    ("no picture", [("12.txt", TEXT)], "missing_image"),
    ("no text", [("13.jpg", JPEG)], "missing_text"),
    ("no picture but other bytes", [("14.cls", b"7"), ("14.txt", TEXT)], "missing_image"),
    ("hard link", [("15.jpg", b"", tarfile.LNKTYPE, "00.jpg"), ("15.txt", TEXT)], "missing_image"),
    ("symbolic link", [("16.jpg", b"", tarfile.SYMTYPE, "00.jpg"), ("16.txt", TEXT)], "missing_image"),
    ("linked text", [("17.jpg", JPEG), ("17.txt", b"", tarfile.SYMTYPE, "00.txt")], "missing_text"),
    ("doubled", [("18.jpg", JPEG), ("18.txt", TEXT), ("18.jpg", JPEG), ("18.txt", TEXT)], "bad_record"),
    ("doubled but for case", [("19.jpg", JPEG), ("19.JPG", JPEG), ("19.txt", TEXT)], "bad_record"),
    ("beside AppleDouble", [("20.jpg", JPEG), ("._20.jpg", b"\0\5\x16\7"), ("20.txt", TEXT)], "iua"),
    ("folders", [("d/", b"", tarfile.DIRTYPE), ("d/21.jpg", JPEG), ("d/21.txt", TEXT)], "iua"),
    ("a long name", [(f"{'n' * 200}22.jpg", JPEG), (f"{'n' * 200}22.txt", TEXT)], "iua"),
    ("extended headers", [("pax23.jpg", JPEG), ("pax23.txt", TEXT)], "iua"),
    ("named in JSON", [("24.a.jpg", JPEG), ("24.b.jpg", JPEG), ("24.json", "24.b.jpg", "24.a.jpg")], "iiua"),
    ("named, and missing", [("25.a.jpg", JPEG), ("25.json", "25.a.jpg", "25.b.jpg")], "missing_image"),
    ("a caption beside metadata", [("26.jpg", JPEG), ("26.json",), ("26.txt", TEXT)], "iua"),
    ("two texts", [("27.jpg", JPEG), ("27.a.txt", TEXT), ("27.b.txt", TEXT)], "bad_record"),
    ("apart", [("28.jpg", JPEG)], "missing_text"),
    ("between", [("29.jpg", JPEG), ("29.txt", TEXT)], "iua"),
    ("its other half", [("28.txt", TEXT)], "missing_image"),
]


def write_odd(path: Path, samples: list[tuple[str, list[tuple[Any, ...]], str]], *, pax: bool) -> None:
    kind = tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT
    with tarfile.open(path, "w", format=kind) as archive:
        for _, members, _ in samples:
            for name, *rest in members:
                if name.endswith(".json"):
                    record = {"images": rest, "texts": PAIRS} if rest else {"width": 64}
                    rest = [json.dumps(record).encode()]
                entry = member(name, *rest)
                archive.addfile(entry, io.BytesIO(rest[0]))


@pytest.mark.parametrize("pax", [True, False])
@pytest.mark.parametrize("per_span", [1, 2, 3, 64])
def test_odd_samples_of_a_tar_are_read_or_set_aside_each_for_its_reason(tmp_path, monkeypatch, pax, per_span):
    from pipelines.data.read.formats import tar_shards

    monkeypatch.setattr(tar_shards, "RECORDS_PER_SPAN", per_span)
    write_odd(tmp_path / "shard.tar", ODD_SAMPLES, pax=pax)
    found = read_all(ImageTextReader, tmp_path)
    shown = [result.reason if isinstance(result, Rejected) else outline(result) for result in found]
    assert dict(zip([name for name, _, _ in ODD_SAMPLES], shown, strict=True)) == {
        name: expected for name, _, expected in ODD_SAMPLES
    }
    by_name = dict(zip([name for name, _, _ in ODD_SAMPLES], found, strict=True))
    assert [media.name for media in by_name["named in JSON"].media] == ["24.b.jpg", "24.a.jpg"]
    assert "18.jpg twice" in by_name["doubled"].detail
    assert "neighbouring members are 28.jpg" in by_name["apart"].detail
    assert "tar --dereference" in by_name["hard link"].detail
    assert by_name["dots in the key"].sample.sample_id.startswith("v1.2_04@")


@pytest.mark.parametrize("named", [True, False])
def test_numbered_pictures_of_a_tar_are_in_the_order_of_their_numbers(tmp_path, named):
    """As tar lists them, 10 comes before 2."""
    pictures = {number: PICTURE + bytes([number]) for number in (0, 1, 10, 2)}
    record = {"texts": PAIRS} | ({"images": [f"images/{number}.png" for number in range(4)]} if named else {})
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, data in pictures.items():
            archive.addfile(member(f"k.{number}.png", data), io.BytesIO(data))
        text = json.dumps(record).encode()
        archive.addfile(member("k.json", text), io.BytesIO(text))
    (found,) = read_all(ImageTextReader, tmp_path)
    assert [entry.data for entry in found.media] == [pictures[number] for number in (0, 1, 2, 10)]


@pytest.mark.parametrize("name", ["1.mp4", "1.cam.MOV"])
def test_a_video_in_a_tar_is_not_passed_over(tmp_path, name):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for entry, data in ((name, b"video"), ("1.txt", TEXT)):
            archive.addfile(member(entry, data), io.BytesIO(data))
    (found,) = read_all(ImageTextReader, tmp_path, pictures="optional")
    assert (found.reason, name in found.detail) == ("missing_image", True)


def test_archives_that_follow_each_other_in_one_file_are_all_read(tmp_path):
    good = [(str(n), [(f"{n}.jpg", JPEG), (f"{n}.txt", TEXT)], "iua") for n in range(4)]
    for n in range(4):
        write_odd(tmp_path / f"{n}.part", good[n : n + 1], pax=True)
    whole = b"".join((tmp_path / f"{n}.part").read_bytes() for n in range(4))
    (tmp_path / "shard.tar").write_bytes(whole)
    assert [outline(record) for record in read_all(ImageTextReader, tmp_path)] == ["iua"] * 4
    (tmp_path / "shard.tar").write_bytes(whole + b"not a tar" * 100)
    found = reasons(read_all(ImageTextReader, tmp_path))
    assert found == [None] * 4 + ["truncated_file"]


# Words of live clips


def spoken(folder: Path, words: Any, **clip: Any) -> Record | Rejected:
    (folder / "clip.mp4").write_bytes(b"a video")
    write_jsonl(folder / "live.jsonl", [live_record(words=words, **clip)])
    (found,) = read_all(LiveWhisperXReader, folder)
    return found


NAN = float("nan")


@pytest.mark.parametrize(
    ("words", "said", "untimed"),
    [
        ([(0.1, 0.4, "in"), (None, None, "2014"), (1.2, 1.4, "he")], ["in 2014", "", "he", ""], 1),
        ([(0.1, 0.6, "in"), (NAN, NAN, "2014"), (1.2, 1.4, "he")], ["in", "2014", "he", ""], 1),
        ([(None, None, "2014"), (0.6, 0.9, "was")], ["", "2014 was", "", ""], 1),
        ([(0.1, 0.2, "in"), (None, None, "20"), (None, None, "14")], ["in 20 14", "", "", ""], 2),
        ([(0.1, 1.9, "in"), (None, None, "2014"), (1.1, 1.2, "he")], ["in", "", "2014 he", ""], 1),
        ([(1.1, 1.2, "b"), (0.1, 0.2, "a"), (0.6, 0.5, "x")], ["a", "x", "b", ""], 0),
        ([(0.1, None, "a"), (0.2, 0.3, " ")], ["a", "", "", ""], 0),
    ],
)
def test_a_word_without_a_time_takes_its_neighbours_and_the_clip_lives(tmp_path, words, said, untimed):
    found = spoken(tmp_path, words)
    assert isinstance(found, Record), found
    texts = [part.text for part in found.sample.parts[1:] if not isinstance(part, Image)]
    assert texts == said
    assert found.meta.get("untimed_words", 0) == untimed


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "missing_text"),
        ([(0.1, 0.2, " ")], "missing_text"),
        ([(None, None, "2014")], "missing_text"),
        ([(9.0, 9.4, "late")], "word_outside_clip"),
        ([("0.1", 0.2, "a")], "bad_record"),
        ([(True, 0.2, "a")], "bad_record"),
    ],
)
def test_a_clip_without_words_or_with_times_of_another_clip_is_set_aside(tmp_path, words, reason):
    assert reasons([spoken(tmp_path, words)]) == [reason]
