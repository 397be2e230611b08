"""Users' own data: three kinds of file, four kinds of conversation, pictures named, embedded or packed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pyarrow as pa
import pytest

from casa_core.types import Image, Text
from pipelines.data.read.corpora.image_text import ImageTextReader
from tests.support.data.corpus import PICTURE, read_all, reasons, write_jsonl
from tests.support.data.layouts import IMAGE, image, write_rows, write_tar

PAIRS = [{"user": "<image>what is it?", "assistant": "a ramp"}]
TURNS = [{"from": "human", "value": "<image>what is it?"}, {"from": "gpt", "value": "a ramp"}]
QUESTION, ANSWER = Text(role="user", text="what is it?"), Text(role="assistant", text="a ramp", trained=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("0.png", "sub/1.png"):
        (tmp_path / name).write_bytes(PICTURE)
    return tmp_path


def asked(*content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "a ramp"}]


ASK = {"type": "text", "text": "what is it?"}
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "record",
    [
        {"image": "0.png", "texts": PAIRS},
        {"images": ["0.png"], "conversations": TURNS},
        {"image": "1.png", "conversations": TURNS},  # beside the file that names it
        {"image": DATA_URI, "texts": PAIRS},
        {"image": {"path": "0.png"}, "texts": PAIRS},
        {"messages": asked({"type": "image_url", "image_url": {"url": DATA_URI}}, ASK)},
        {"messages": asked({"type": "image_url", "image_url": "0.png"}, ASK)},
        {"messages": asked({"type": "image", "image": "0.png"}, ASK)},
        {"messages": asked({"type": "image"}, ASK), "images": ["0.png"]},
        {"messages": [{"role": "user", "content": "what is it?"}, asked()[1]], "image": "0.png"},
    ],
)
def test_a_question_about_a_picture_can_be_written_in_many_ways(folder, record):
    write_jsonl(folder / "sub" / "mine.jsonl", [record], seeks=False)
    (found,) = read_all(ImageTextReader, folder)
    assert found.sample.parts == (Image(media=0), QUESTION, ANSWER)
    assert [media.data for media in found.media] == [PICTURE]


@pytest.mark.parametrize("field", ["caption", "text"])
def test_a_caption_answers_the_prompt(folder, field):
    write_jsonl(folder / "mine.jsonl", [{"image": "0.png", field: "a ramp"}], seeks=False)
    (found,) = read_all(ImageTextReader, folder, caption_prompt="what is it?")
    assert found.sample.parts == (Image(media=0), QUESTION, ANSWER)
    (found,) = read_all(ImageTextReader, folder, caption_prompt="")
    assert found.sample.parts == (Image(media=0), ANSWER)


def test_several_pictures_stand_where_they_are_marked_and_text_may_have_none(folder):
    two = {"images": ["0.png", "sub/1.png"], "messages": asked({"type": "image"}, ASK, {"type": "image"})}
    bare = {"texts": [{"user": "what is it?", "assistant": "a ramp"}]}
    write_jsonl(folder / "mine.jsonl", [two, bare], seeks=False)
    first, second = read_all(ImageTextReader, folder, pictures="optional")
    assert first.sample.parts == (Image(media=0), QUESTION, Image(media=1), ANSWER)
    assert second.sample.parts == (QUESTION, ANSWER)


def test_parquet_rows_hold_pictures_as_structs_bytes_or_paths(folder):
    text = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))
    shapes = {
        "a": (IMAGE, image()),
        "b": (IMAGE, image(None, "0.png")),
        "c": (pa.binary(), PICTURE),
        "d": (pa.string(), "0.png"),
    }
    for name, (kind, value) in shapes.items():
        schema = pa.schema([("image", kind), ("texts", text), ("id", pa.int64())])
        write_rows(folder / f"{name}.parquet", [{"image": value, "texts": PAIRS, "id": 3}], schema)
    results = read_all(ImageTextReader, folder)
    assert [record.media[0].data for record in results] == [PICTURE] * 4
    assert [record.sample.sample_id for record in results] == [f"3@{name}.parquet/0" for name in shapes]
    assert results[0].meta == {"id": 3}


def test_members_of_a_tar_with_one_key_are_a_sample(folder):
    record = json.dumps({"conversations": TURNS, "image": "the picture's old name.jpg", "meta": {"score": 5}})
    members = [
        *(("a/0.png", PICTURE), ("a/0.json", record.encode())),
        *(("a/1.txt", b"a ramp"), ("a/1.left.png", PICTURE), ("a/1.right.PNG", PICTURE), ("a/1.cls", b"7")),
    ]
    write_tar(folder / "shard.tar", members)
    first, second = read_all(ImageTextReader, folder, caption_prompt="what is it?")
    assert first.sample.parts == (Image(media=0), QUESTION, ANSWER)
    assert first.meta == {"score": 5, "id": "a/0"}
    assert second.sample.parts == (Image(media=0), Image(media=1), QUESTION, ANSWER)
    assert [media.name for media in second.media] == ["a/1.left.png", "a/1.right.PNG"]


def test_files_that_differ_in_their_suffix_alone_do_not_share_ids(folder):
    caption = {"caption": "a ramp"}
    write_jsonl(folder / "mine.jsonl", [caption], seeks=False)
    write_rows(folder / "mine.parquet", [caption], pa.schema([("caption", pa.string())]))
    write_tar(folder / "mine.tar", [("x.txt", b"a ramp")])
    ids = [record.sample.sample_id for record in read_all(ImageTextReader, folder, pictures="optional")]
    assert ids == ["mine.jsonl/0", "mine.parquet/0", "x@mine.tar/0"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("[not json", "bad_json"),
        ("[1, 2", "bad_json"),
        ("7", "bad_record"),
        ({"image": "0.png"}, "missing_text"),
        ({"image": "0.png", "caption": "  "}, "missing_text"),
        ({"image": "0.png", "caption": 7}, "bad_record"),
        ({"image": "gone.png", "texts": PAIRS}, "missing_image"),
        ({"image": "sub", "texts": PAIRS}, "missing_image"),
        ({"image": "../0.png", "texts": PAIRS}, "bad_path"),
        ({"image": "https://host/0.png", "texts": PAIRS}, "remote_image"),
        ({"image": "data:image/png;base64,%%%", "texts": PAIRS}, "bad_record"),
        ({"image": "data:image/png,raw", "texts": PAIRS}, "bad_record"),
        ({"image": {}, "texts": PAIRS}, "missing_image"),
        ({"image": 7, "texts": PAIRS}, "bad_record"),
        ({"images": [["0.png"]], "texts": PAIRS}, "bad_record"),
        ({"texts": PAIRS}, "missing_image"),
        ({"texts": ["what?"]}, "bad_record"),
        ({"messages": "hello"}, "bad_record"),
        ({"messages": asked({"type": "audio"})}, "bad_record"),
        ({"messages": asked({"type": "image", "image": "0.png"}), "image": "0.png"}, "bad_record"),
        ({"messages": asked({"type": "image"}, ASK)}, "missing_image"),
    ],
)
def test_a_record_that_cannot_be_used_is_rejected_with_its_place(folder, record, reason):
    good = {"image": "0.png", "caption": "a ramp"}
    write_jsonl(folder / "mine.jsonl", [good, record, good], seeks=False)
    results = read_all(ImageTextReader, folder)
    assert reasons(results) == [None, reason, None]
    assert (results[1].row, results[1].sample_id) == (1, "mine.jsonl/1")


def test_broken_members_of_a_tar_cost_their_sample(folder):
    members = [
        ("0.json", b"{"),
        ("1.json", b"[]"),
        ("2.txt", b"\xff"),
        ("3.png", PICTURE),
        ("3.txt", b"good"),
    ]
    write_tar(folder / "shard.tar", members)
    found = reasons(read_all(ImageTextReader, folder))
    assert found == ["bad_json", "bad_record", "bad_encoding", None]
