"""Filters decide from columns alone, as a plain comparison of all pairs would, and list what they remove."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageEnhance
from pydantic import ValidationError

from casa_core.errors import DataError
from casa_core.media.decode import verify_image
from casa_core.types import Image, Sample, Text
from pipelines.data.clean import perceptual
from pipelines.data.clean.perceptual import HashIndex, difference_hash, earlier_neighbours, hamming
from pipelines.data.filter import filters
from pipelines.data.filter.filters import filter_sources, write_filtered
from pipelines.data.filter.hash_lists import known_pictures, picture_hash, write_hash_list
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import CLEAN_SCHEMA, Media
from pipelines.data.store.shard_pipeline import run_here
from pipelines.data.store.shard_writing import write_shard
from pipelines.recipe.filters import Filters
from tests.support.data.corpus import finevision_row, write_finevision
from tests.support.data.media import encode
from tests.support.data.rows import row_of


def sample(
    number: int,
    *,
    source: str = "vqa",
    pictures: tuple[int | None, ...] = (1,),
    digests: tuple[str, ...] | None = None,
    question: str = "what is it?",
    answer: str = "a ramp",
    size: tuple[int, int] = (40, 24),
    times: tuple[float, ...] = (),
    meta: dict | None = None,
) -> dict:
    """A clean row; a picture is given by its hash (None: a video, of which ``times`` are shown)."""
    digests = digests or tuple(f"{number}-{at}" for at in range(len(pictures)))
    shown = [Image(media=at) for at, phash in enumerate(pictures) if phash is not None]
    shown += [Image(role="assistant", media=0, timestamp=time) for time in times]
    parts = (*shown, Text(role="user", text=question), Text(role="assistant", text=answer, trained=True))
    media = [
        Media(
            kind="video" if phash is None else "image",
            data=b"encoded",
            width=size[0],
            height=size[1],
            sha256=digest,
            phash=phash,
        )
        for phash, digest in zip(pictures, digests, strict=True)
    ]
    return row_of(Sample(source=source, sample_id=f"{source}/{number}", parts=parts), media, meta or {})


def artifact(folder: Path, rows: list[dict], rows_per_shard: int = 7) -> CleanReader:
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, len(rows), rows_per_shard):
        path = folder / f"train-{len(shards):05d}.arrow"
        count = write_shard(path, CLEAN_SCHEMA, rows[start : start + rows_per_shard])
        shards.append({"file": path.name, "rows": count})
    card = {"splits": {"train": {"rows": len(rows), "shards": shards}}}
    (folder / "card.json").write_text(json.dumps(card))
    return CleanReader(folder, "train")


def applied(readers: dict[str, CleanReader], **declared) -> filters.Filtered:
    return filter_sources(readers, Filters.model_validate(declared), run_here)


def removed_rows(readers: dict[str, CleanReader], **declared) -> list[tuple[str, int, str]]:
    return [(entry.source, entry.row, entry.filter) for entry in applied(readers, **declared).removed]


# Perceptual hashes


def picture(seed: int = 0, height: int = 240, width: int = 320) -> PILImage.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return PILImage.fromarray(coarse).resize((width, height), PILImage.Resampling.BICUBIC)


def hash_of(data: bytes) -> int:
    found = picture_hash(data)
    assert found is not None
    return found


def test_a_hash_has_a_bit_where_the_picture_grows_lighter_to_the_right():
    ramp = np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1))
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp[:, ::-1]) == 0
    step = np.zeros((8, 9), np.uint8)
    step[0, 1:] = 200  # top row: light from its second column on
    assert difference_hash(step) == 1 << 63


def test_one_picture_keeps_its_hash_through_scaling_compression_and_light():
    original = hash_of(encode(picture(), "PNG"))
    for other in (
        encode(picture(), "JPEG", quality=40),
        encode(picture(height=480, width=640), "JPEG", quality=85, progressive=True),
        encode(picture().resize((150, 113)), "WEBP", quality=70),
        encode(ImageEnhance.Brightness(picture()).enhance(0.8), "PNG"),
        encode(picture(height=120, width=160).convert("RGBA"), "PNG"),
        encode(picture().convert("CMYK"), "TIFF"),
    ):
        assert (original ^ hash_of(other)).bit_count() <= 3
    strangers = [hash_of(encode(picture(seed), "PNG")) for seed in range(1, 20)]
    assert min((original ^ other).bit_count() for other in strangers) > 10


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    """Hashes around a few centres, so that every distance from 0 to some 20 occurs."""
    hashes = rng.integers(0, 2**64, 30, dtype=np.uint64)[rng.integers(0, 30, count)]
    for _ in range(6):
        flip = np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
        hashes ^= np.where(rng.random(count) < 0.5, flip, np.uint64(0))
    return hashes


def alike(left: Sequence[int], right: Sequence[int], distance: int) -> bool:
    return all((a ^ b).bit_count() <= distance for a, b in zip(left, right, strict=True))


def brute_force(hashes_NK: np.ndarray, distance: int, groups_N: np.ndarray) -> list[int]:
    """The first earlier neighbour of each, by comparing all pairs."""
    hashes, groups = hashes_NK.tolist(), groups_N.tolist()
    return [
        next((e for e in range(n) if groups[e] == groups[n] and alike(hashes[e], hashes[n], distance)), -1)
        for n in range(len(hashes))
    ]


@pytest.mark.parametrize("distance", [0, 1, 3, 5, 8])
def test_near_hashes_are_found_as_by_comparing_all_pairs(distance, monkeypatch):
    rng = np.random.default_rng(distance)
    hashes = clustered(rng, 500)
    hashes[::25] = hashes[7]
    groups = rng.integers(0, 3, 500)
    monkeypatch.setattr(perceptual, "_PAIRS_AT_ONCE", 100)
    near_ones = [n for n in brute_force(hashes[:, None], distance, groups) if n >= 0]
    assert len(near_ones) > 8  # or nothing is tested
    for one in (np.zeros(500, np.int64), groups):
        np.testing.assert_array_equal(
            earlier_neighbours(hashes[:, None], distance, one), brute_force(hashes[:, None], distance, one)
        )
    ungrouped = earlier_neighbours(hashes[:, None], distance)
    np.testing.assert_array_equal(ungrouped, brute_force(hashes[:, None], distance, np.zeros(500)))
    queries = hashes[::5] ^ np.uint64(9)
    near = [np.flatnonzero(hamming(hashes, query) <= distance) for query in queries]
    expected = [own[0] if len(own) else -1 for own in near]
    np.testing.assert_array_equal(HashIndex(hashes, distance).first_near(queries), expected)


def test_of_several_pictures_each_must_be_near():
    rng = np.random.default_rng(1)
    hashes = np.stack([clustered(rng, 300) for _ in range(3)], axis=1)
    hashes[150:] = hashes[:150] ^ (np.uint64(1) << rng.integers(0, 64, (150, 3), dtype=np.uint64))
    hashes[200:, 2] = rng.integers(0, 2**64, 100, dtype=np.uint64)
    expected = brute_force(hashes, 3, np.zeros(300))
    assert 40 < sum(n >= 0 for n in expected) < 200
    np.testing.assert_array_equal(earlier_neighbours(hashes, 3), expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 7), max_size=40), st.integers(0, 4))
def test_tiny_and_equal_hashes_are_no_special_case(numbers, distance):
    hashes = np.array(numbers, np.uint64)[:, None]
    expected = brute_force(hashes, distance, np.zeros(len(numbers)))
    np.testing.assert_array_equal(earlier_neighbours(hashes, distance), expected)


# Filters that look at a sample alone


def test_ratings_below_the_least_are_removed_and_missing_ones_are_a_choice(tmp_path):
    rated = [{"relevance_min": 5}, {"relevance_min": 2}, {}, {"relevance_ratings": [5, None, 1]},
             {"relevance_ratings": None, "formatting_min": 1}]  # fmt: skip
    readers = {"vqa": artifact(tmp_path, [sample(n, meta=meta) for n, meta in enumerate(rated)])}
    found = applied(readers, ratings={"relevance": 3})
    assert [(entry.row, entry.detail) for entry in found.removed] == [
        (1, "relevance 2, less than 3"),
        (3, "relevance 1, less than 3"),
    ]
    assert found.keep["vqa"].tolist() == [True, False, True, False, True]
    strict = removed_rows(readers, ratings={"relevance": 3, "unrated": "remove"})
    assert [row for _, row, _ in strict] == [1, 2, 3, 4]
    both = removed_rows(readers, ratings={"relevance": 2, "formatting": 2})
    assert [row for _, row, _ in both] == [3, 4]


def test_the_length_of_trained_text_is_counted_in_characters(tmp_path):
    answers = ["", "ja", "größer", "大きい鳥", "x" * 11]
    rows = [sample(n, answer=answer, question="q" * 50) for n, answer in enumerate(answers)]
    readers = {"vqa": artifact(tmp_path, rows, rows_per_shard=2)}
    kept = applied(readers, text_length={"min_characters": 2, "max_characters": 6}).keep["vqa"]
    assert kept.tolist() == [2 <= len(answer) <= 6 for answer in answers]
    longest = applied(readers, text_length={"max_characters": 10})
    assert [entry.detail for entry in longest.removed] == ["11 characters of trained text, more than 10"]


def test_elongated_pictures_are_removed_whichever_side_is_longer(tmp_path):
    sizes = [(40, 24), (100, 10), (10, 100), (99, 10)]
    rows = [sample(n, size=size) for n, size in enumerate(sizes)] + [sample(9, pictures=())]
    found = applied({"vqa": artifact(tmp_path, rows)}, aspect_ratio={"max": 9.9})
    assert [(entry.row, entry.detail) for entry in found.removed] == [
        (1, "a picture of 100 x 10 pixels"),
        (2, "a picture of 10 x 100 pixels"),
    ]


def test_pictures_of_evaluation_sets_are_removed_by_bytes_and_by_looks(tmp_path):
    evaluation = [encode(picture(seed), "PNG") for seed in (1, 2)]
    flat = encode(PILImage.new("RGB", (64, 64), (9, 9, 9)), "PNG")
    rows = [finevision_row(images=[data]) for data in (*evaluation, flat, b"broken")]
    write_finevision(tmp_path / "eval" / "test-0.parquet", rows)
    steps = []
    count = write_hash_list(
        str(tmp_path / "eval"),
        tmp_path / "parquet.parquet",
        reader="finevision",
        progress=lambda *step: steps.append(step),
    )
    assert steps[-1] == (len(steps), len(steps), "4 pictures")
    listed = pq.read_table(tmp_path / "parquet.parquet")
    assert listed.num_rows == count == 4
    assert listed.column("phash").null_count == 1
    objects = [{"sha256": row["sha256"], "phash": row["phash"]} for row in listed.to_pylist()]
    (tmp_path / "objects.json").write_text(json.dumps(objects))
    columns = {"sha256": listed.column("sha256").to_pylist(), "phash": [row["phash"] for row in objects[:3]]}
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    looks_alike = hash_of(encode(picture(2), "JPEG", quality=50))
    training = [
        sample(0, pictures=(picture_hash(encode(picture(3), "PNG")),)),
        sample(1, digests=(objects[0]["sha256"],)),
        sample(2, pictures=(77, looks_alike)),
        sample(3, meta={"shrunk": [{"media": 0, "sha256": objects[1]["sha256"], "bytes": 1}]}),
        sample(4, pictures=(0,)),  # as flat as the evaluation set's, which proves nothing
        sample(5, pictures=(None,), times=(0.0,)),
    ]
    readers = {"vqa": artifact(tmp_path / "clean", training)}
    for name in ("parquet.parquet", "objects.json", "columns.json"):
        found = applied(readers, decontamination={"hashes": [str(tmp_path / name)]})
        assert [(entry.row, entry.filter) for entry in found.removed] == [
            (row, "decontamination") for row in (1, 2, 3)
        ]
    details = [entry.detail for entry in found.removed]
    assert details[0].startswith("a picture has the bytes")
    assert "bits from an evaluation set's" in details[1]
    assert "before it was shrunk" in details[2]
    other = removed_rows(readers, decontamination={"hashes": [str(tmp_path / "objects.json")], "distance": 0})
    assert (2 in [row for _, row, _ in other]) == (looks_alike == objects[1]["phash"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.json", None),
        ("bad.json", b"{"),
        ("bad.parquet", b"PAR1 nothing"),
        ("words.json", b'[{"sha256": "not hexadecimal"}]'),
        ("large.json", b'[{"phash": 18446744073709551616}]'),
    ],
)
def test_a_file_that_is_no_list_of_hashes_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"no list of picture hashes[\s\S]*casa data hash"):
        known_pictures((str(tmp_path / name),), 3)


def test_a_list_is_made_of_a_folder_of_picture_files_too(tmp_path):
    files = {"a.png": encode(picture(1), "PNG"), "b/c.JPG": encode(picture(2), "JPEG"), "b/copy.png": b""}
    files["b/copy.png"] = files["a.png"]
    for name, data in files.items():
        (tmp_path / "eval" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "eval" / name).write_bytes(data)
    (tmp_path / "eval" / "notes.txt").write_text("no picture")
    assert write_hash_list(str(tmp_path / "eval"), tmp_path / "list.parquet") == 2
    assert pq.read_table(tmp_path / "list.parquet").to_pylist() == [
        {"name": name, "sha256": hashlib.sha256(files[name]).hexdigest(), "phash": hash_of(files[name])}
        for name in ("a.png", "b/c.JPG")
    ]
    with pytest.raises(DataError, match="no pictures at"):
        write_hash_list(str(tmp_path / "eval"), tmp_path / "none.parquet", reader="finevision")


# Filters that compare samples


def test_of_equal_samples_the_first_in_the_stream_stays(tmp_path):
    rows = [
        sample(0, digests=("a",)),
        sample(1, digests=("a",), question="What  IS\nit?"),  # text is compared without case and spacing
        sample(2, digests=("a",), question="where is it?"),
        sample(3, digests=("b",)),
        sample(4, pictures=(1, 2), digests=("a", "b")),
        sample(5, pictures=(2, 1), digests=("b", "a")),
        sample(6, pictures=()),
        sample(7, pictures=()),
        sample(8, pictures=(None,), digests=("v",), times=(0.0, 0.5)),
        sample(9, pictures=(None,), digests=("v",), times=(4.0, 4.5)),
        sample(10, pictures=(None,), digests=("v",), times=(4.0, 4.5)),
    ]
    other = [sample(0, source="live", digests=("b",)), sample(1, source="live", digests=("c",))]
    readers = {"vqa": artifact(tmp_path / "a", rows), "live": artifact(tmp_path / "b", other)}
    found = applied(readers, duplicates={})
    assert [(entry.source, entry.row, entry.detail) for entry in found.removed] == [
        ("vqa", 1, "equal to row 0 of vqa"),
        ("vqa", 7, "equal to row 6 of vqa"),
        ("vqa", 10, "equal to row 9 of vqa"),
        ("live", 0, "equal to row 3 of vqa"),
    ]
    pictures = removed_rows(readers, duplicates={"of": "pictures"})
    assert [(source, row) for source, row, _ in pictures] == [
        ("vqa", 1),
        ("vqa", 2),
        ("vqa", 10),
        ("live", 0),
    ]
    turned_round = {"live": readers["live"], "vqa": readers["vqa"]}
    assert ("vqa", 3, "duplicates") in removed_rows(turned_round, duplicates={})


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    hashes = clustered(rng, 20)
    rows, seen = [], []
    for n in range(120):
        count = int(rng.integers(0, 3))
        own = tuple(int(h) for h in rng.choice(hashes, count))
        question = ("where?", "Where ?", "what?")[int(rng.integers(0, 3))]
        rows.append(sample(n, pictures=own, question=question))
        seen.append((own, unicodedata.normalize("NFKC", question).casefold()))

    def near(late: int, early: int, same_text: bool) -> bool:
        (own, question), (other, text) = seen[late], seen[early]
        same = len(own) == len(other) > 0 and alike(own, other, 3)
        return same and (question == text or not same_text)

    monkeypatch.setattr(filters, "ROWS_PER_SCAN", 13)
    readers = {
        "a": artifact(tmp_path / "a", rows[:70]),
        "b": artifact(tmp_path / "b", rows[70:]),
    }
    for of in ("pictures", "pictures_and_text"):
        found = applied(readers, near_duplicates={"distance": 3, "of": of})
        expected = [
            n for n in range(120) if any(near(n, earlier, of == "pictures_and_text") for earlier in range(n))
        ]
        assert len(expected) > 10
        numbers = [entry.row + (70 if entry.source == "b" else 0) for entry in found.removed]
        assert numbers == expected


def test_what_another_filter_removes_does_not_stand_for_its_copy(tmp_path):
    rows = [
        sample(0, digests=("a",), meta={"relevance_min": 1}),
        sample(1, digests=("a",), pictures=(8,)),
        sample(2, digests=("a",), pictures=(8,)),
        sample(3, digests=("z",), pictures=(9,)),
    ]
    readers = {"vqa": artifact(tmp_path, rows)}
    declared = {"ratings": {"relevance": 2}, "duplicates": {}, "near_duplicates": {}}
    assert removed_rows(readers, **declared) == [
        ("vqa", 0, "ratings"),
        ("vqa", 2, "duplicates"),
        ("vqa", 3, "near_duplicates"),
    ]


def test_a_sample_counts_for_the_first_filter_and_every_one_reports(tmp_path):
    rows = [sample(n, size=(100, 1), answer="x" * n, meta={"relevance_min": n}) for n in range(1, 5)]
    readers = {"vqa": artifact(tmp_path, rows), "none": artifact(tmp_path / "none", [])}
    declared = {
        "ratings": {"relevance": 2},
        "text_length": {"min_characters": 3},
        "aspect_ratio": {"max": 2},
        "duplicates": {},
    }
    found = applied(readers, **declared)
    assert [entry.filter for entry in found.removed] == [
        "ratings", "text_length", "aspect_ratio", "aspect_ratio",
    ]  # fmt: skip
    assert {name: entry["count"] for name, entry in found.report.items()} == {
        "ratings": 1, "text_length": 1, "aspect_ratio": 2, "duplicates": 0,
    }  # fmt: skip
    assert found.report["aspect_ratio"]["share"] == 0.5
    assert found.report["aspect_ratio"]["by_source"] == {"vqa": 2, "none": 0}
    assert [example["sample_id"] for example in found.report["aspect_ratio"]["examples"]] == [
        "vqa/3",
        "vqa/4",
    ]
    write_filtered(tmp_path / "filtered.parquet", found.removed)
    listed = pq.read_table(tmp_path / "filtered.parquet").to_pylist()
    assert [(row["source"], row["row"], row["sample_id"], row["filter"]) for row in listed] == [
        (entry.source, entry.row, entry.sample_id, entry.filter) for entry in found.removed
    ]
    assert list(found.removed[1:3]) == [found.removed[1], found.removed[2]]
    assert found.removed[-1] == list(found.removed)[3]


def test_without_filters_everything_stays(tmp_path):
    readers = {"vqa": artifact(tmp_path, [sample(0), sample(1)])}
    found = applied(readers)
    assert (found.keep["vqa"].tolist(), len(found.removed), found.report) == ([True, True], 0, {})


def test_how_the_scan_is_cut_decides_nothing(tmp_path, monkeypatch):
    rows = [sample(n % 9, pictures=(n % 5,), answer="x" * (n % 7)) for n in range(60)]
    readers = {"vqa": artifact(tmp_path, rows)}
    declared = {"text_length": {"min_characters": 2}, "duplicates": {}, "near_duplicates": {"of": "pictures"}}
    whole = applied(readers, **declared)
    monkeypatch.setattr(filters, "ROWS_PER_SCAN", 11)
    assert applied(readers, **declared).removed.table.equals(whole.removed.table)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratings": {"unrated": "keep"}},
        {"ratings": {"relevance": 6}},
        {"text_length": {}},
        {"text_length": {"min_characters": 5, "max_characters": 4}},
        {"aspect_ratio": {"max": 0.5}},
        {"decontamination": {"hashes": []}},
        {"near_duplicates": {"distance": 9}},
        {"near_duplicate": {}},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValidationError):
        Filters.model_validate(wrong)


def test_the_scan_of_a_picture_and_its_verification_agree_on_the_hash():
    data = encode(picture(), "PNG")
    assert difference_hash(verify_image(data).thumbnail) == picture_hash(data)
