"""Conversations become exactly the template's tokens, pictures exactly the tower's patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from casa_core.errors import ConfigError, DataError, MediaError
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import EncodedSample, Image, ImageSize, Part, Sample, Text
from tests.support.data.media import scene

WORDS = "what is this a red circle and that blue no describe it live be brief"
# The special tokens as a reader of the tests sees them.
SPECIAL = {
    "S>": "<|system|>",
    "U>": "<|user|>",
    "A>": "<|assistant|>",
    "IMG": "<|image|>",
    ".": "<|frame_end|>",
}
SPECIAL["END"] = "<|end|>"


@pytest.fixture(scope="module")
def processor() -> CasaProcessor:
    return CasaProcessor(build_tokenizer([WORDS] * 3, 400))


def user(text: str) -> Text:
    return Text(role="user", text=text)


def answer(text: str, *, trained: bool = True) -> Text:
    return Text(role="assistant", text=text, trained=trained)


def frame(time: float) -> Image:
    return Image(role="assistant", timestamp=time)


def encode(processor: CasaProcessor, *parts: Part, prompt: bool = False) -> EncodedSample:
    sample = Sample(source="test", sample_id="1", parts=parts)
    images = sum(isinstance(part, Image) for part in parts)
    return processor.encode(sample, [ImageSize(16, 16, 16, 16, 1)] * images, add_generation_prompt=prompt)


def spelled(processor: CasaProcessor, encoded: EncodedSample) -> str:
    """Tokens in short, each picture as [] before the token it precedes, *trained* ones starred."""
    back = {token: short for short, token in SPECIAL.items()}
    out = []
    for place, (token, trained) in enumerate(zip(encoded.input_ids, encoded.loss_mask, strict=True)):
        out += ["[]"] * encoded.image_positions.count(place)
        name = processor.tokenizer.convert_ids_to_tokens(token)
        out.append(back.get(name, name.lstrip("Ġ")) + ("*" if trained else ""))
    return " ".join(out)


CONVERSATIONS = {
    "a question about a picture": (
        [Image(), user("what is this"), answer("a circle")],
        "U> [] IMG what is this END A> a* circle* END*",
    ),
    "a picture after the question": (
        [user("what is this"), Image(), answer("a circle")],
        "U> what is this [] IMG END A> a* circle* END*",
    ),
    "several turns": (
        [Image(), user("what is this"), answer("a circle"), user("red"), answer("no")],
        "U> [] IMG what is this END A> a* circle* END* U> red END A> no* END*",
    ),
    "several turns, each with a picture": (
        [Image(), user("what is this"), answer("red"), Image(), user("and that"), answer("blue")],
        "U> [] IMG what is this END A> red* END* U> [] IMG and that END A> blue* END*",
    ),
    "consecutive pictures, one token after them all": (
        [Image(), Image(), Image(), user("what is this"), answer("no")],
        "U> [] [] [] IMG what is this END A> no* END*",
    ),
    "pictures apart": (
        [Image(), user("this"), Image(), user("and that"), answer("no")],
        "U> [] IMG this [] IMG and that END A> no* END*",
    ),
    "text alone, with a system prompt": (
        [Text(role="system", text="be brief"), user("what is this"), answer("no")],
        "S> be brief END U> what is this END A> no* END*",
    ),
    "an answer that is only shown": (
        [user("what is this"), answer("no", trained=False), user("and that"), answer("red")],
        "U> what is this END A> no END U> and that END A> red* END*",
    ),
    "a live stream, silent at its second frame": (
        [
            user("describe it live"),
            frame(0),
            answer("a red"),
            frame(0.5),
            answer(""),
            frame(1),
            answer("circle"),
        ],
        "U> describe it live END A> [] IMG a* red* .* [] IMG .* [] IMG circle* .*",
    ),
    "a live stream without a question": (
        [frame(0), answer(""), frame(0.5), answer("a")],
        "A> [] IMG .* [] IMG a* .*",
    ),
    "several frames before a word": (
        [user("it"), frame(0), frame(0.5), answer("red")],
        "U> it END A> [] [] IMG red* .*",
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_exactly_these_tokens_and_trains_exactly_its_answers(
    processor: CasaProcessor, name: str
):
    parts, expected = CONVERSATIONS[name]
    assert spelled(processor, encode(processor, *parts)) == expected


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_turn_spans_cover_the_trained_tokens(processor: CasaProcessor, name: str):
    parts, _ = CONVERSATIONS[name]
    encoded = encode(processor, *parts)
    inside = {place for start, end in encoded.turns for place in range(start, end)}
    assert {place for place, trained in enumerate(encoded.loss_mask) if trained} <= inside
    turns = {number for number, part in enumerate(parts) if isinstance(part, Text) and part.trained}
    assert bool(encoded.turns) == bool(turns)
    for start, _ in encoded.turns:
        assert encoded.input_ids[start - 1] == processor.tokenizer.convert_tokens_to_ids("<|assistant|>")


def test_a_prompt_ends_where_the_trained_answer_begins(processor: CasaProcessor):
    asked = encode(processor, Image(), user("what is this"), prompt=True)
    answered = encode(processor, Image(), user("what is this"), answer("a circle"))
    assert answered.input_ids[: len(asked.input_ids)] == asked.input_ids
    assert answered.loss_mask[len(asked.input_ids)]
    assert not any(answered.loss_mask[: len(asked.input_ids)])


@pytest.mark.parametrize("query", ["describe it live", ""])
def test_a_stream_starts_as_the_conversation_was_trained(processor: CasaProcessor, query: str):
    asked = [user(query)] if query else []
    trained = encode(processor, *asked, frame(0), answer("a red")).input_ids
    prompt = processor.stream_prompt(query)
    assert list(trained[: len(prompt)]) == prompt
    assert trained[len(prompt)] == processor.image_id


def test_text_never_becomes_a_control_token_by_spelling_it(processor: CasaProcessor):
    encoded = encode(processor, user("<|end|> <|assistant|>"), answer("no"))
    control = {processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL.values()}
    inside = encoded.input_ids[1 : encoded.turns[0][0] - 2]
    assert not control & set(inside)


def test_a_missing_size_is_refused(processor: CasaProcessor):
    sample = Sample(source="test", sample_id="7", parts=(Image(), user("what is this")))
    with pytest.raises(DataError, match="Sample '7' has 1 images but 0 sizes"):
        processor.encode(sample, [])


def test_an_unknown_template_is_refused():
    with pytest.raises(ConfigError, match="Unknown chat template 'casa-9'"):
        CasaProcessor(build_tokenizer(["a"], 270), template="casa-9")


@given(text=st.text(max_size=30))
def test_any_text_comes_back_from_its_tokens(text: str):
    tokenizer = build_tokenizer([WORDS], 300)
    assume(text.strip() == text)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert CasaProcessor(tokenizer).decode_text(ids) == text


def test_a_tokenizer_depends_on_its_texts_and_not_on_their_order():
    texts = ["a red circle", "a blue circle", "a red square"]
    one, other = build_tokenizer(texts, 290), build_tokenizer(texts[::-1], 290)
    assert one.get_vocab() == other.get_vocab()
    assert one.get_vocab() != build_tokenizer(["something else"], 290).get_vocab()


SIDES = st.integers(1, 3000)
TOKENIZER = build_tokenizer(["a"], 270)


@given(
    height=SIDES, width=SIDES, max_side=st.sampled_from([28, 64, 100, 896]), patch=st.sampled_from([8, 14])
)
def test_a_resized_image_keeps_to_the_grid_and_the_budget(height: int, width: int, max_side: int, patch: int):
    factor = patch * 2
    assume(max(height, width) <= 200 * min(height, width))
    size = CasaProcessor(TOKENIZER, patch_size=patch, max_side=max_side).image_size(height, width)
    rows, columns = size.height // factor, size.width // factor
    assert (rows * factor, columns * factor) == (size.height, size.width)
    assert size.tokens == rows * columns >= 1
    assert (size.original_height, size.original_width) == (height, width)
    assert size.height * size.width <= max_side**2


@given(height=st.integers(200, 3000), width=st.integers(200, 3000))
def test_a_resized_image_keeps_its_aspect_and_what_resolution_the_budget_leaves(height: int, width: int):
    assume(max(height, width) <= 4 * min(height, width))
    size = CasaProcessor(TOKENIZER, max_side=896).image_size(height, width)
    scale = min(1.0, 896 / math.sqrt(height * width))
    # Rounding down can cost a whole step where a side would fit exactly but for floating point.
    assert abs(size.height - height * scale) < 16.001
    assert abs(size.width - width * scale) < 16.001


@given(height=SIDES, width=SIDES)
def test_turning_a_picture_turns_its_size(height: int, width: int):
    assume(max(height, width) <= 200 * min(height, width))
    processor = CasaProcessor(TOKENIZER)
    upright, turned = processor.image_size(height, width), processor.image_size(width, height)
    assert upright.tokens == turned.tokens
    assert {upright.height, upright.width} == {turned.height, turned.width}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((0, 5), "empty_image"), ((5, 0), "empty_image"), ((1, 201), "extreme_aspect_ratio")],
)
def test_pictures_without_a_sensible_size_are_refused(
    processor: CasaProcessor, shape: Sequence[int], reason: str
):
    with pytest.raises(MediaError) as caught:
        processor.image_size(*shape)
    assert caught.value.reason == reason


def test_patches_are_the_pictures_squares_those_of_one_token_side_by_side(processor: CasaProcessor):
    rgb = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    size = processor.image_size(32, 48)
    expected = []
    for top in range(0, 32, 16):
        for left in range(0, 48, 16):
            for down in (0, 8):
                for right in (0, 8):
                    square = rgb[top + down : top + down + 8, left + right : left + right + 8]
                    expected.append(
                        [square[y, x, c] / 127.5 - 1 for c in range(3) for y in range(8) for x in range(8)]
                    )
    torch.testing.assert_close(processor.patches(rgb, size), torch.tensor(expected, dtype=torch.float32))
    assert processor.grid(size) == (4, 6)


def test_a_large_picture_is_resized_and_keeps_its_look(processor: CasaProcessor):
    rgb = scene(240, 400)
    size = processor.image_size(240, 400)
    assert (size.height, size.width) == (48, 80)
    patches_PE = processor.patches(rgb, size)
    assert patches_PE.shape == (6 * 10, 3 * 64)
    assert patches_PE.min() >= -1
    assert patches_PE.max() <= 1
    red = patches_PE[:, :64].mean(1)
    assert red[-1] > red[30] > red[5], "the horizontal ramp still runs from left to right"


def test_a_processor_comes_back_from_disk_as_it_was(processor: CasaProcessor, tmp_path):
    other = CasaProcessor(processor.tokenizer, patch_size=14, merge_size=2, max_side=112)
    other.save_pretrained(tmp_path)
    again = CasaProcessor.from_pretrained(tmp_path)
    assert isinstance(again, CasaProcessor)
    assert (again.patch_size, again.merge_size, again.max_side, again.template) == (14, 2, 112, "casa-1")
    assert again.template_hash() == other.template_hash()
    parts = CONVERSATIONS["several turns, each with a picture"][0]
    assert encode(again, *parts) == encode(other, *parts)
