"""LLaVA-OneVision's two layouts: four encodings of a turn, subsets in parts, ids that repeat, captions."""

from __future__ import annotations

import pytest

from casa_core.errors import ConfigError
from casa_core.types import Image, Text
from pipelines.data.read import READERS, REASONS, Record, open_reader
from pipelines.data.read.corpora.llava_midtraining import LlavaMidtrainingReader
from pipelines.data.read.corpora.llava_onevision import LlavaOneVisionReader
from tests.support.data.corpus import PICTURE, read_all, reasons
from tests.support.data.layouts import (
    ENCODINGS,
    MIDTRAINING_SCHEMA,
    image,
    onevision_row,
    write_every_layout,
    write_onevision,
    write_rows,
)

# Every layout, every oddity


@pytest.mark.parametrize("reader", READERS)
def test_every_documented_oddity_is_read_or_set_aside_with_its_reason(tmp_path, reader):
    expected = write_every_layout(tmp_path)[reader]
    opened = open_reader(reader, str(tmp_path / reader), "corpus", {})
    results = [result for span in opened.spans("train") for result in opened.read(span)]
    assert reasons(results) == expected
    assert set(filter(None, reasons(results))) <= REASONS.keys()
    ids = [result.sample.sample_id if isinstance(result, Record) else result.sample_id for result in results]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("reader", READERS)
def test_a_span_reads_the_same_alone_and_in_another_process(tmp_path, reader):
    import pickle

    write_every_layout(tmp_path)
    opened = open_reader(reader, str(tmp_path / reader), "corpus", {})
    spans = opened.spans("train")
    together = [list(opened.read(span)) for span in spans]
    for span, expected in reversed(list(zip(spans, together, strict=True))):
        fresh = pickle.loads(pickle.dumps(open_reader(reader, str(tmp_path / reader), "corpus", {})))
        assert list(fresh.read(span)) == expected


# LLaVA-OneVision-1.5-Instruct


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("user", "assistant"), [("human", "gpt"), ("user", "assistant")])
def test_all_encodings_of_a_turn_say_the_same(tmp_path, encoding, user, assistant):
    turns = [("system", "be brief"), (user, "what is it?\n<image>"), (assistant, "a ramp")]
    turns += [(user, "which way?"), (assistant, "up")]
    write_onevision(tmp_path / "s" / "train-0.parquet", [onevision_row(turns, encoding)], encoding)
    (record,) = read_all(LlavaOneVisionReader, tmp_path)
    assert isinstance(record, Record)
    assert record.sample.parts == (
        Text(role="system", text="be brief"),
        Text(role="user", text="what is it?"),
        Image(media=0),
        Text(role="assistant", text="a ramp", trained=True),
        Text(role="user", text="which way?"),
        Text(role="assistant", text="up", trained=True),
    )
    assert [media.data for media in record.media] == [PICTURE]


def test_a_picture_stands_where_its_marker_does_and_first_without_one(tmp_path):
    later = [("human", "hello"), ("gpt", "hi"), ("human", "<image>what is it?"), ("gpt", "a ramp")]
    nowhere = [(who, text.replace("<image>", "")) for who, text in later]
    write_onevision(tmp_path / "s" / "0.parquet", [onevision_row(later), onevision_row(nowhere)])
    kinds = [
        "".join("i" if isinstance(part, Image) else part.role[0] for part in record.sample.parts)
        for record in read_all(LlavaOneVisionReader, tmp_path)
    ]
    assert kinds == ["uaiua", "iuaua"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (onevision_row(image=None), "missing_image"),
        (onevision_row(image=image(None, None)), "missing_image"),
        (onevision_row(image=image(None, "a.png")), "missing_image"),
        (onevision_row([("human", "<image><image>same?"), ("gpt", "yes")]), "missing_image"),
        (onevision_row([("human", "hi"), ("gpt", None)]), "missing_text"),
        (onevision_row([("human", "hi"), ("gpt", " ")]), "missing_text"),
        (onevision_row(conversations=None), "missing_text"),
        (onevision_row(conversations=[]), "missing_text"),
        (onevision_row([("human", "hi")]), "bad_turns"),
        (onevision_row([("gpt", "hi"), ("human", "hi"), ("gpt", "hi")]), "bad_turns"),
        (onevision_row([("human", "hi"), ("system", "be brief"), ("gpt", "hi")]), "bad_turns"),
        (onevision_row([("tool", "hi"), ("gpt", "hi")]), "unknown_role"),
        (onevision_row(conversations=[None]), "bad_record"),
        (onevision_row(conversations=[{"content": "hi"}]), "bad_record"),
        (onevision_row(conversations=[{"role": "user", "content": "a", "value": "b"}]), "bad_record"),
    ],
)
def test_a_row_that_breaks_the_layout_is_rejected_under_its_id_and_place(tmp_path, row, reason):
    write_onevision(tmp_path / "s" / "0.parquet", [onevision_row(), row, onevision_row()])
    results = read_all(LlavaOneVisionReader, tmp_path)
    assert reasons(results) == [None, reason, None]
    assert results[1].sample_id == "7@s/0/1"


def test_ids_that_repeat_stay_unique_and_keep_the_original(tmp_path):
    for folder in ("a", "b"):
        write_onevision(tmp_path / folder / "0.parquet", [onevision_row(id="x/7"), onevision_row(id=None)])
    results = read_all(LlavaOneVisionReader, tmp_path)
    ids = [record.sample.sample_id for record in results]
    assert ids == ["x/7@a/0/0", "a/0/1", "x/7@b/0/0", "b/0/1"]
    assert [record.meta.get("id") for record in results] == ["x/7", None, "x/7", None]
    assert results[0].meta == {"subset": "a", "id": "x/7", "data_source": "ramps"}


def test_parts_of_a_subset_count_as_one_and_spelling_is_forgiven_where_it_is_clear(tmp_path):
    for folder in ("GQA-part-01-of-10", "GQA-part-02-of-10", "llava_wild", "gqa2", "sherlock"):
        write_onevision(tmp_path / folder / "0.parquet", [onevision_row()])

    def read(**options):
        return [record.meta["subset"] for record in read_all(LlavaOneVisionReader, tmp_path, **options)]

    assert read(subsets=("gqa", "LLaVA-wild")) == ["GQA", "GQA", "llava_wild"]
    assert read(subsets=("gqa*",)) == ["GQA", "GQA", "gqa2"]
    assert read(exclude_subsets=("gqa*", "sher*")) == ["llava_wild"]
    assert read(subsets=("gqa*",), exclude_subsets=("gqa2",)) == ["GQA", "GQA"]


@pytest.mark.parametrize("option", ["subsets", "exclude_subsets"])
def test_a_subset_that_is_not_there_is_refused_with_the_closest_name(tmp_path, option):
    for folder in ("GQA-part-01-of-10", "viquae"):
        write_onevision(tmp_path / folder / "0.parquet", [onevision_row()])
    with pytest.raises(ConfigError, match="Did you mean: viquae"):
        read_all(LlavaOneVisionReader, tmp_path, **{option: ("viqua",)})


# The mid-training corpus


def test_a_caption_answers_the_prompt_or_follows_its_picture(tmp_path):
    row = {"id": "coyo/00/17", "image": image(), "caption": " a ramp\n"}
    write_rows(tmp_path / "coyo" / "0.parquet", [row], MIDTRAINING_SCHEMA)
    answer = Text(role="assistant", text="a ramp", trained=True)
    (record,) = read_all(LlavaMidtrainingReader, tmp_path)
    assert record.sample.sample_id == "coyo/00/17@coyo/0/0"
    assert record.meta == {"subset": "coyo", "id": "coyo/00/17"}
    assert record.sample.parts == (Image(), Text(role="user", text="Describe the image."), answer)
    (record,) = read_all(LlavaMidtrainingReader, tmp_path, caption_prompt="What?")
    assert record.sample.parts == (Image(), Text(role="user", text="What?"), answer)
    (record,) = read_all(LlavaMidtrainingReader, tmp_path, caption_prompt="")
    assert record.sample.parts == (Image(), answer)
