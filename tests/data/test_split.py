"""Splitting: as few pieces as possible, turns whole and in order, pictures in every piece, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, Part, Sample, Text
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.encode import encode_sample
from pipelines.data.pack.split import pieces
from pipelines.data.store.quarantine import Rejected
from pipelines.data.store.rows import CleanSample, Media

SYSTEM = Text(role="system", text="be kind")
PICTURES = (Image(media=0), Image(media=1))


def turn(words: int, name: str = "w", trained: bool = True) -> tuple[Text, Text]:
    question = Text(role="user", text=f"{name}?")
    return question, Text(role="assistant", text=" ".join([name] * words), trained=trained)


def chat(*turns: Sequence[Part], before: Sequence[Part] = PICTURES) -> Sample:
    return Sample(source="s", sample_id="a/b", parts=(*before, *itertools.chain(*turns)))


def words(sample: Sample) -> int:
    return sum(len(part.text.split()) for part in sample.parts if isinstance(part, Text))


def within(most: int):
    return lambda sample: words(sample) <= most


def fewest_pieces(sizes: Sequence[int], most: int) -> int | None:
    """Over all ways to cut a row of turns: the least number of runs of which each holds ``most``."""
    for cuts in range(len(sizes)):
        for places in itertools.combinations(range(1, len(sizes)), cuts):
            edges = [0, *places, len(sizes)]
            if all(sum(sizes[a:b]) <= most for a, b in itertools.pairwise(edges)):
                return cuts + 1
    return None


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), most=st.integers(2, 14))
def test_no_other_cut_between_turns_needs_fewer_pieces(lengths, most):
    sample = chat(
        *(turn(length, name=f"t{n}") for n, length in enumerate(lengths)), before=(SYSTEM, *PICTURES)
    )
    found = pieces(sample, within(most + 2))  # the system prompt has two words
    expected = fewest_pieces([length + 1 for length in lengths], most)
    assert (len(found) if found else None) == expected
    if found:
        assert all(words(piece) <= most + 2 for piece in found)
        assert all(piece.parts[:3] == (SYSTEM, *PICTURES) for piece in found)
        assert tuple(part for piece in found for part in piece.parts[3:]) == sample.parts[3:]
        assert {(piece.source, piece.sample_id) for piece in found} == {("s", "a/b")}


def test_a_turn_of_several_texts_stays_whole():
    parts = (Text(role="user", text="a"), Text(role="user", text="b"), Text(role="assistant", text="c"))
    found = pieces(chat(parts, parts), within(5))
    assert found == [chat(parts), chat(parts)]


def test_a_whole_video_is_repeated_in_each_piece_as_pictures_are():
    video = (Image(timestamp=0.0), Image(timestamp=0.5))
    assert pieces(chat(turn(4), turn(4), before=video), within(5)) == [chat(turn(4), before=video)] * 2


def test_text_without_pictures_is_split_too():
    assert pieces(chat(turn(4), turn(4), before=()), within(5)) == [chat(turn(4), before=())] * 2


@pytest.mark.parametrize(
    "sample",
    [
        chat(turn(4), (Image(), *turn(4))),  # a picture in a later turn
        chat((Text(role="user", text="see"), Image()), turn(4), turn(4), before=()),  # … or after words
        chat(
            (Text(role="user", text="describe"), Image(role="assistant", timestamp=0.0)),
            turn(4),
            turn(4),
            before=(),
        ),  # … in the assistant's turn
        chat(turn(4), turn(9)),  # a single turn that is too long
    ],
)
def test_what_would_lose_its_context_is_not_split(sample):
    assert pieces(sample, within(6)) is None


# Through the real template: what a piece is, is the template's matter alone.


@pytest.fixture(scope="module", params=["casa-1", "qwen-1"])
def processor(request) -> CasaProcessor:
    tokenizer = build_tokenizer(["red green blue what is it"] * 3, 340, request.param)
    return CasaProcessor(tokenizer, template=request.param, max_side=64)


def encoded(processor: CasaProcessor, sample: Sample, text: int, image: int = 100, split: bool = True):
    media = Media(kind="image", data=None, width=32, height=32, sha256="f00")
    clean = CleanSample(sample=sample, media=(media, media), meta={})
    budget = Budget(text, image)
    return encode_sample(processor, 7, clean, Limits(pictures=budget, video=budget, split=split))


def test_pieces_are_conversations_of_their_own_with_all_pictures_and_every_answer_once(processor):
    sample = chat(*(turn(6, name=name) for name in ("red", "green", "blue", "what")))
    whole = encoded(processor, sample, 10_000)
    assert len(whole) == 1
    rows = encoded(processor, sample, text := len(whole[0]["input_ids"]) - 1)
    assert [row["part"] for row in rows] == list(range(len(rows)))
    assert len(rows) == 2
    answers = lambda rows: [  # noqa: E731
        token
        for row in rows
        for token, trained in zip(row["input_ids"], row["loss_mask"], strict=True)
        if trained
    ]
    assert answers(rows) == answers(whole)
    for row in rows:
        assert row["row"] == 7
        assert row["text_tokens"] == len(row["input_ids"]) <= text
        assert row["image_tokens"] == whole[0]["image_tokens"]
        assert [image["media"] for image in row["images"]] == [0, 1]
        assert row["image_positions"] == whole[0]["image_positions"]
    assert encoded(processor, sample, text, split=False).reason == "over_text_budget"


def test_what_cannot_be_used_is_rejected_with_its_reason(processor):
    def rejected(sample: Sample, **limits: int) -> Rejected:
        result = encoded(processor, sample, **{"text": 60, **limits})
        assert isinstance(result, Rejected)
        assert (result.row, result.sample_id, result.sha256) == (7, "a/b", "f00")
        return result

    assert rejected(chat(turn(2), turn(90))).reason == "over_text_budget"
    assert rejected(chat(turn(2)), image=7).reason == "over_image_budget"
    assert rejected(chat(turn(2)), image=7).detail == "The sample has 8 image tokens; a sequence holds 7."
    assert rejected(chat(turn(2, trained=False))).reason == "nothing_to_train"


def test_a_video_has_budgets_of_its_own(processor, monkeypatch):
    monkeypatch.setattr(processor, "video_over_budget", "refuse")
    clip = chat(turn(3), before=(Image(timestamp=0.0), Image(timestamp=0.5)))
    media = Media(kind="video", data=None, width=32, height=32, sha256="")
    clean = CleanSample(sample=clip, media=(media,), meta={})
    narrow, wide = Budget(100, 4), Budget(100, 8)
    for pictures, video, fits in ((narrow, wide, True), (wide, narrow, False)):
        result = encode_sample(processor, 0, clean, Limits(pictures=pictures, video=video, split=True))
        assert isinstance(result, list) == fits
        if fits:
            assert result[0]["video"]
