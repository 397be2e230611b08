"""Data cards: what they say is what the artifacts hold, in one file that asks nobody for anything."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from casa_core.errors import StoreError
from casa_core.media.decode import decode_image
from pipelines.cards import samples as card_samples
from pipelines.cards.data import card_page
from pipelines.cards.gallery import shortened, spaced
from pipelines.cards.samples import sampled
from pipelines.cards.sequence_chart import powers_of_two
from pipelines.cards.tables import PACK_REASONS
from pipelines.data.pack import encode
from pipelines.data.pack.sequences import documents_of
from pipelines.data.read.source.reasons import REASONS
from pipelines.data.store.quarantine import read_quarantine
from pipelines.data.store.readers import CleanReader, PackReader
from tests.support.data.prepared import HOSTILE, PACK, make_store, run_clean, write_photos
from tests.support.paths import ROOT

VOID = {"meta", "br", "hr", "img"}


class Page(HTMLParser):
    """A page taken apart: its text, its tables by section, its pictures, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._section = ""
        self.feed(html)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href", "srcset", "action") if found.get(name)]
        if tag == "section":
            self._section = found["id"]
        if tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.tables[self._section][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[self._section][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def pictures(self) -> list[np.ndarray]:
        data = [a.partition("base64,")[2] for a in self.addresses if a.startswith("data:image/jpeg")]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(own)))) for own in data]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> dict[str, Path]:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def page(store) -> Page:
    return Page(card_page(store["pack"], store))


@pytest.fixture
def photos(tmp_path) -> tuple[Path, Page]:
    write_photos(tmp_path / "raw")
    run_clean(tmp_path / "raw", tmp_path / "clean")
    return tmp_path / "clean", Page(card_page(tmp_path / "clean", {}))


def test_a_card_is_no_part_of_its_artifact(store, page):
    for folder in store.values():
        files = json.loads((folder / "manifest.json").read_text())["files"]
        assert "card.json" in files
        assert "card.html" not in files
        assert not (folder / "card.html").exists()


def test_a_card_loads_nothing_from_anywhere(page, photos):
    for own in (page, photos[1]):
        assert own.addresses
        assert all(address.startswith(("#", "data:")) for address in own.addresses)


def test_what_a_corpus_says_stays_text(page, store):
    html = card_page(store["pack"], store)
    assert HOSTILE in page.text
    assert "<script>alert" not in html


def test_the_mixture_is_what_the_sequences_hold(page, store):
    rows: Counter[str] = Counter()
    text: Counter[str] = Counter()
    image: Counter[str] = Counter()
    for packed in PackReader(store["pack"]):
        for document, entry in zip(documents_of(packed), packed["documents"], strict=True):
            rows[document.source] += entry["part"] == 0
            text[document.source] += len(document.input_ids)
            image[document.source] += sum(own["tokens"] for own in document.images)
    asked = PACK["mixture"]["weights"]
    expected = [
        [
            source,
            *(f"{counts[source]:,}" for counts in (rows, text, image)),
            f"{asked[source] / sum(asked.values()):.2%}",
            f"{rows[source] / rows.total():.2%}",
            "",
        ]
        for source in PACK["sources"]
    ]
    assert page.tables["mixture"][1:] == expected


def test_filters_are_counted_with_examples_that_they_removed(page, store):
    removed = pq.read_table(store["pack"] / "filtered.parquet").to_pylist()
    counts = Counter(entry["filter"] for entry in removed)
    totals = {row[0]: row[1] for row in page.tables["filters"] if row[0] in PACK["filters"]}
    assert totals == {name: f"{counts[name]:,}" for name in PACK["filters"]}
    assert min(counts[name] for name in PACK["filters"]) > 0
    listed = {(entry["source"], f"{entry['row']:,}", entry["sample_id"]) for entry in removed}
    shown = [
        (row[1], row[2], row[3]) for row in page.tables["filters"] if len(row) == 5 and row[1] != "source"
    ]
    assert shown
    assert set(shown) <= listed


def test_the_quarantine_is_counted_by_reason_with_examples(page, store):
    rejected = read_quarantine(store["pack"] / "quarantine.parquet")
    counts = Counter((entry.reason, entry.source) for entry in rejected)
    assert counts
    totals = {(row[0], row[1]): row[2] for row in page.tables["quarantine"] if (row[0], row[1]) in counts}
    assert totals == {key: f"{count:,}" for key, count in counts.items()}
    ids = {entry.sample_id for entry in rejected}
    assert {row[2] for row in page.tables["quarantine"] if len(row) == 4 and row[2] in ids}


def test_fill_stands_beside_the_fill_of_the_lower_bound(page, store):
    card = json.loads((store["pack"] / "card.json").read_text())
    for kind in ("image", "video"):
        own = card["by_kind"][kind]
        ratio = own["sequences"] / own["lower_bound"]
        for budget in ("text", "image"):
            reached = own["fill"][budget]
            assert f"{100 * reached:.1f} % best {100 * reached * ratio:.1f} %" in page.text
    assert f"above the bound of {card['lower_bound']:,}" in page.text


def test_a_clean_card_shows_the_pictures_of_its_rows(photos):
    folder, page = photos
    reader = CleanReader(folder, "train")
    shown = page.pictures()
    rows = [int(found) for found in re.findall(r"row (\d+) ·", page.text)]
    assert len(shown) == len(rows) == 12
    assert rows == sorted(set(rows))
    for number, pixels in zip(rows, shown, strict=True):
        original = decode_image(reader.media(number, 0))
        assert pixels.shape == original.shape  # smaller than a thumbnail: shown as it is
        assert np.abs(pixels.astype(int) - original.astype(int)).mean() < 6


def test_a_clean_card_counts_every_record(photos):
    _, page = photos
    assert page.tables["splits"][1][:4] == ["train", "60", "57", "3"]
    assert "3 of 60 records could not be used" in page.text
    reasons = [row[:3] for row in page.tables["quarantine"] if row[0] == "truncated_image"]
    assert reasons == [["truncated_image", "photos", "3"]]


def test_equal_artifacts_have_equal_cards_wherever_they_lie(store, tmp_path):
    copies = {name: tmp_path / "elsewhere" / name for name in store}
    for name, folder in store.items():
        shutil.copytree(folder, copies[name])
    before = card_page(store["pack"], store)
    assert card_page(copies["pack"], copies) == before
    assert str(tmp_path) not in before


def test_a_clean_card_leaves_out_where_the_corpus_lies(photos, tmp_path):
    html = card_page(photos[0], {})
    assert "max_failures" in html
    assert str(tmp_path) not in html


def test_a_card_that_lacks_what_all_have_is_refused(store, tmp_path):
    folder = tmp_path / "pack"
    shutil.copytree(store["pack"], folder)
    card = json.loads((folder / "card.json").read_text())
    del card["lower_bound"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(StoreError, match="lower_bound"):
        card_page(folder, store)
    (folder / "card.json").unlink()
    with pytest.raises(StoreError, match="not a finished artifact"):
        card_page(folder, {})


def test_a_card_needs_an_artifact_and_the_clean_artifacts_that_it_refers_to(store, tmp_path):
    with pytest.raises(StoreError, match="not a finished clean or pack artifact"):
        card_page(tmp_path, store)
    with pytest.raises(StoreError, match=r"The clean artifacts of clips are missing\."):
        card_page(store["pack"], {"chats": store["chats"]})


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=200))
def test_logarithmic_bins_count_as_numpy_does(values):
    found = powers_of_two(values)
    counts, _ = np.histogram(values, bins=found.edges)
    assert tuple(counts.tolist()) == found.counts
    assert sum(found.counts) == len(values)
    assert found.counts[0] > 0
    assert found.counts[-1] > 0


@given(st.integers(0, 10**8), st.integers(1, 50))
def test_spaced_numbers_are_distinct_and_cover_the_whole(total, count):
    found = spaced(total, count)
    assert found == sorted(set(found))
    assert len(found) == min(total, count)
    assert all(0 <= number < total for number in found)
    gaps = np.diff([*found, total + (found[0] if found else 0)])
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@given(st.integers(0, 10**8))
@example(card_samples.ROWS + 1)
def test_sampled_rows_are_distinct_bounded_and_in_runs(total):
    found = sampled(total)
    assert found == sorted(set(found))
    assert len(found) == min(total, card_samples.ROWS)
    assert not found or 0 <= found[0] <= found[-1] < total
    breaks = int((np.diff(found) > 1).sum())
    assert breaks < card_samples.ROWS // card_samples.RUN


@given(st.text(max_size=400), st.integers(1, 60))
def test_a_shortened_text_is_its_beginning_on_one_line(text, characters):
    flat = " ".join(text.split())
    found = shortened(text, characters)
    assert "\n" not in found
    assert found == flat or (found.endswith(" …") and flat.startswith(found.removesuffix(" …")))
    assert len(found) <= max(characters, 0) + 2


def test_every_reason_of_the_pack_stage_is_explained():
    source = Path(encode.__file__).read_text()
    named = set(re.findall(r'_reject\(number, clean, "(\w+)"', source))
    assert named
    assert named <= PACK_REASONS.keys()


def test_the_documents_table_of_reasons_is_the_codes():
    document = (ROOT / "docs" / "data.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (?:clean|pack) \| (.+) \|$", document, re.MULTILINE))
    assert told == REASONS | PACK_REASONS
