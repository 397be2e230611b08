"""The reading task: answers follow from the pictures alone, and nothing but the pictures tells them."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.generate.easy_vqa import FINEVISION_SCHEMA
from pipelines.data.generate.reading import COLORS, GLYPHS, PLACES, draw_digits, paint, write_reading


def read_picture(pixels: np.ndarray) -> list[tuple[str, str]]:
    """(digit, colour) of each quarter, by matching: the ink's box is stretched over every glyph."""
    found = []
    for quarter in range(4):
        top, left = 32 * (quarter // 2), 32 * (quarter % 2)
        part = pixels[top : top + 32, left : left + 32].astype(int)
        color, mask = min(
            ((name, (part == np.array(rgb)).all(-1)) for name, rgb in COLORS.items()),
            key=lambda entry: -entry[1].sum(),
        )
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        ink = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

        def distance(glyph: np.ndarray, ink: np.ndarray = ink) -> float:
            tight = glyph[np.ix_(glyph.any(1), glyph.any(0))]
            y = np.arange(len(ink)) * len(tight) // len(ink)
            x = np.arange(ink.shape[1]) * tight.shape[1] // ink.shape[1]
            return float((tight[y][:, x] != ink).mean())

        found.append((min(GLYPHS, key=lambda digit: distance(GLYPHS[digit])), color))
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    assert write_reading(folder, seed=3, train_rows=600, test_rows=90) == {
        "train": ["reading/train-00000-of-00001.parquet"],
        "test": ["reading/test-00000-of-00001.parquet"],
    }
    return folder


def rows(corpus: Path, split: str) -> list[dict]:
    table = pq.read_table(corpus / f"reading/{split}-00000-of-00001.parquet")
    assert table.schema.equals(FINEVISION_SCHEMA)
    return table.to_pylist()


def test_every_answer_is_what_a_matcher_reads_in_the_picture(corpus: Path):
    for row in rows(corpus, "train"):
        pixels = np.asarray(Image.open(io.BytesIO(row["images"][0]["bytes"])))
        assert pixels.shape == (64, 64, 3)
        read = read_picture(pixels)
        (turn,) = row["texts"]
        kind = row["source"].removeprefix("reading/")
        if kind == "read":
            assert turn == {"user": "read all digits", "assistant": " ".join(digit for digit, _ in read)}
            continue
        asked = turn["user"].removeprefix("which digit is ").removesuffix("?")
        truth = (
            read[PLACES.index(asked)][0]
            if kind == "place"
            else {color: digit for digit, color in read}[asked]
        )
        assert turn["assistant"] == truth


def test_kinds_are_equally_frequent_and_a_guess_is_right_once_in_ten(corpus: Path):
    train = rows(corpus, "train")
    assert set(Counter(row["source"] for row in train).values()) == {200}
    single = Counter(
        row["texts"][0]["assistant"] for row in train if row["source"] != "reading/read"
    )  # 400 answers
    assert set(single) == set("0123456789")
    assert max(single.values()) < 70, "expected 40 of each"


def test_training_and_held_out_pictures_are_different_and_follow_from_the_seed(corpus: Path, tmp_path: Path):
    train, test = ({row["images"][0]["bytes"] for row in rows(corpus, split)} for split in ("train", "test"))
    assert len(train) == 600
    assert not train & test
    write_reading(tmp_path, seed=3, train_rows=600, test_rows=90)
    for split in ("train", "test"):
        name = f"reading/{split}-00000-of-00001.parquet"
        assert (tmp_path / name).read_bytes() == (corpus / name).read_bytes()


def test_digits_stay_in_their_quarter_and_no_two_share_a_digit_or_a_colour():
    for seed in range(300):
        digits = draw_digits(random.Random(seed))
        assert len({digit.digit for digit in digits}) == len({digit.color for digit in digits}) == 4
        for quarter, digit in enumerate(digits):
            left, top = 32 * (quarter % 2), 32 * (quarter // 2)
            assert left < digit.x
            assert digit.x + digit.width <= left + 31
            assert top < digit.y
            assert digit.y + digit.height <= top + 31
        assert len(np.unique(paint(digits, (250, 250, 250)).reshape(-1, 3), axis=0)) == 5
