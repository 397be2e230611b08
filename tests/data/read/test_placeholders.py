"""Where the pictures of a field stand in a text: placeholders in every spelling, and words that are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casa_core.types import Image, Text
from pipelines.data.read import Record
from pipelines.data.read.corpora.conversation import pictures, placed, turns_from
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.corpora.image_text import ImageTextReader
from pipelines.data.read.corpora.llava_onevision import LlavaOneVisionReader
from pipelines.data.read.corpora.llava_video import LlavaVideoReader
from pipelines.data.read.source.base import BadRecord
from tests.support.data.corpus import (
    PICTURE,
    finevision_row,
    read_all,
    reasons,
    write_finevision,
    write_jsonl,
)
from tests.support.data.layouts import onevision_row, video_item, write_array, write_onevision
from tests.support.data.media import counting_video

PLAIN = (
    *("<image>", "<IMAGE>", "<Image>", "<|image|>", "<|image_pad|>", "<image/>", "<ImageHere>"),
    *("<|vision_start|><|image_pad|><|vision_end|>", "<im_start><image><im_end>", "<image></image>"),
    *("<Img><ImageHere></Img>", "<image>./</image>", "<image_placeholder>"),
)
LOOSE = ("<img>", "<IMG>", "[IMAGE]", "[IMG]", "[Image]", "<img></img>")
NUMBERED = (
    *("<image_{}>", "<image {}>", "<IMAGE {}>", "<image{}>", "<img_{}>", "<|image_{}|>", "<image-{}>"),
    *("[IMAGE {}]", "[Image {}]", "[IMG_{}]"),
)


def shown(text: str, count: int, kind: Any = "image", answer: str = "yes") -> str:
    """The question with the numbers of the pictures in it: "Before: (0) After: (1)"."""
    groups = pictures(count)
    parts = placed(
        turns_from([{"from": "human", "value": text}, {"from": "gpt", "value": answer}]), groups, kind
    )
    return " ".join(part.text if isinstance(part, Text) else f"({part.media})" for part in parts[:-1])


def refused(text: str, count: int, kind: Any = "image") -> BadRecord:
    with pytest.raises(BadRecord) as error:
        shown(text, count, kind)
    return error.value


@pytest.mark.parametrize("mark", [*PLAIN, *LOOSE])
def test_the_nth_placeholder_is_the_nth_picture_however_it_is_spelled(mark):
    assert shown(f"Before: {mark} After: {mark} What changed?", 2) == "Before: (0) After: (1) What changed?"
    assert shown(f"{mark}{mark}\nWhat changed?", 2) == "(0) (1) What changed?"
    assert refused(f"{mark} and {mark}", 1).reason == "missing_image"
    assert refused(f"{mark} what is it?", 0).reason == "missing_image"
    assert refused(f"{mark} and?", 2).reason == "unplaced_image"


@pytest.mark.parametrize("mark", NUMBERED)
def test_a_number_names_its_picture_whatever_the_order(mark):
    first, second, third = (mark.format(number) for number in (1, 2, 3))
    assert shown(f"{first} or {second}?", 2) == "(0) or (1) ?"
    assert shown(f"{second} or {first}?", 2) == "(1) or (0) ?"
    assert shown(f"{first}?", 1) == "(0) ?"
    for text in (f"{first} or {third}?", third):
        error = refused(text, 2)
        assert error.reason == "missing_image"
        assert f"have {third}, the record has 2 pictures, counted from 1" in error.detail
        assert f"write \\{third} where the word itself is meant" in error.detail
    assert refused(f"{first}?", 2).reason == "unplaced_image"
    assert refused(f"{first}?", 0).reason == "missing_image"


def test_numbers_begin_at_0_where_a_0_occurs():
    assert shown("<image_0> or <image_1>?", 2) == "(0) or (1) ?"
    assert shown("<image_01> or <image_00>?", 2) == "(1) or (0) ?"
    assert refused("<image_0>, <image_1> or <image_2>?", 2).reason == "missing_image"


def test_a_number_named_again_is_a_word_because_the_picture_is_shown():
    assert shown("<image 1>\nIs it red in <image 1>?", 1) == "(0) Is it red in <image 1>?"
    assert shown("<image>\n<image>\nIs <image_2> darker?", 2) == "(0) (1) Is <image_2> darker?"
    assert shown("Image-1: <image> Image-2: <image>", 2) == "Image-1: (0) Image-2: (1)"
    assert refused("<image>\n<image>\nIs <image_3> darker?", 2).reason == "missing_image"


def test_numbers_go_through_all_turns():
    turns = turns_from(
        [
            {"from": "human", "value": "<image_2>?"},
            {"from": "gpt", "value": "blue, and not as <image_1>"},
            {"from": "human", "value": "and <image_1>?"},
            {"from": "gpt", "value": "red"},
        ]
    )
    parts = placed(turns, pictures(2))
    assert [part.media if isinstance(part, Image) else part.text for part in parts] == [
        *(1, "?", "blue, and not as <image_1>"),
        *("and", 0, "?", "red"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "What does <img> do in HTML?",
        "Write [IMAGE] there, and [IMG]",
        "What does `<image>` do?",
        "What does \\<image> do?",
        "<img src='a.png'> <image2text> <images> <imagery> [image] [img] a[IMG]",
        "![Image](a.png) [Image](a.png)",
        "<video src='a.mp4'> <videos>",
    ],
)
def test_what_clearly_is_text_stays_text_beside_a_marked_picture(text):
    assert shown(f"<image>\n{text}", 1) == f"(0) {text.replace(chr(92), '')}"


@pytest.mark.parametrize("mark", ["<image>", "<image_1>", "<img>", "[IMAGE]", "<video>"])
def test_a_backslash_or_backticks_make_any_placeholder_a_word(mark):
    assert shown(f"What is \\{mark}?", 1) == f"(0) What is {mark}?"
    assert shown(f"What is `{mark}`?", 0) == f"What is `{mark}`?"


def test_a_video_is_marked_by_its_own_placeholders_or_a_pictures():
    for mark in ("<video>", "<VIDEO>", "<|video|>", "<|vision_start|><|video_pad|><|vision_end|>", "<image>"):
        assert shown(f"{mark}\nWhat happens?", 1, "video") == "(0) What happens?"
    for mark in ("<video_1>", "<video 1>", "[VIDEO]", "<vid>", "<image_0>"):
        assert shown(f"In {mark}, what happens?", 1, "video") == "In (0) , what happens?"
    assert refused("<video_2>?", 1, "video").reason == "missing_image"


@pytest.mark.parametrize("text", ["<video>\nWhat?", "<image> <video>", "<image> <video_1>", "[VIDEO] what?"])
def test_a_video_that_a_record_of_pictures_does_not_have_is_missed(text):
    for count in (0, 1):
        assert refused(text, count).reason == "missing_video"


def test_a_picture_named_inside_a_text_is_not_trained_on_as_words():
    error = refused("Picture 1: <img>photos/1.png</img>\nWhat is it?", 1)
    assert error.reason == "missing_image"
    assert "pictures are named in image or images" in error.detail


def test_all_readers_of_conversations_have_this_rule(tmp_path: Path):
    text = "<image_2> after <image_1>?"
    write_finevision(
        tmp_path / "f" / "0.parquet", [finevision_row(images=[PICTURE] * 2, turns=[(text, "yes")])]
    )
    (tmp_path / "i").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "i" / name).write_bytes(PICTURE)
    record = {"images": ["0.png", "1.png"], "texts": [{"user": text, "assistant": "yes"}]}
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]
    write_jsonl(
        tmp_path / "i" / "a.jsonl", [record, {"image": record["images"], "conversations": turns}], seeks=False
    )
    for reader, folder in ((FineVisionReader, "f"), (ImageTextReader, "i")):
        for found in read_all(reader, tmp_path / folder):
            assert isinstance(found, Record), found
            order = [part.media if isinstance(part, Image) else part.text for part in found.sample.parts]
            assert order == [1, "after", 0, "?", "yes"]
    rows = [
        onevision_row([("human", mark), ("gpt", "yes")])
        for mark in ("<image_1> a?", "a <img>?", "<image_2>?")
    ]
    write_onevision(tmp_path / "o" / "s" / "0.parquet", rows)
    assert reasons(read_all(LlavaOneVisionReader, tmp_path / "o")) == [None, None, "missing_image"]
    (tmp_path / "v").mkdir()
    counting_video(tmp_path / "v" / "a.mp4", frames=10)
    items = [
        video_item("a.mp4", [("human", f"{mark}\nwhat happens?"), ("gpt", "it counts")])
        for mark in ("<video>", "<video_1>", "<image_1>", "<image>", "<video_2>")
    ]
    write_array(tmp_path / "v" / "a_oe.json", items)
    found = read_all(LlavaVideoReader, tmp_path / "v")
    assert reasons(found) == [None] * 4 + ["missing_image"]
    assert all(
        record.sample == replace(found[0].sample, sample_id=record.sample.sample_id) for record in found[:4]
    )
