"""Forecasts: what they promise is what preparing the same corpus comes to, within the range they state."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from transformers import PreTrainedTokenizerFast

from casa_core.errors import ConfigError
from casa_core.media.images import ImageSettings
from casa_core.types import Image, Sample, Text
from pipelines.cost import listing_sample
from pipelines.cost.forecast import Budgets, Cluster, Estimate, Forecast, Rate, Rates, forecast
from pipelines.cost.listing import Listing, PictureSize, RawFile, SourceListing, read_listing, write_listing
from pipelines.cost.listing_sample import sample_source
from pipelines.dag.context import StageContext
from pipelines.data.pack import run as pack
from pipelines.data.read import RawMedia, Record, Span
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.splits import Inventory
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.data.store.shard_pipeline import run_here
from pipelines.recipe.pack import Pack
from tests.support.data.corpus import finevision_row, live_record, write_finevision, write_jsonl
from tests.support.data.media import counting_video, encode
from tests.support.data.prepared import run_clean, write_photos
from tests.support.paths import ROOT

IMAGES = ImageSettings(patch_size=14, merge_size=2, max_side=896, max_frame_side=448, min_side=56)
TINY = ImageSettings(patch_size=8, merge_size=2, max_side=64)
PAPER = Budgets(text=2048, image=20_480)


def cluster(nodes: int = 8, cpus: int = 64, gbps: float = 25.0, **changes: float) -> Cluster:
    values = {"clean_megapixels": 50.0, "video_megapixels": 20.0, "encode_tokens": 2e5, "pack_samples": 2e4}
    rates = {name: Rate(value=value, source="test") for name, value in (values | changes).items()}
    return Cluster(nodes=nodes, cpus_per_node=cpus, network_gbps=gbps, rates=Rates(**rates))


def source(**changes: object) -> SourceListing:
    values = {
        "name": "photos",
        "files": (RawFile(name="a", rows=600, bytes=9_000_000), RawFile(name="b", rows=400, bytes=6_000_000)),
        "images_per_row": 1.5,
        "text_tokens_per_row": 120.0,
        "text_bytes_per_row": 500.0,
        "media_bytes_per_row": 14_000.0,
        "sizes": (
            PictureSize(width=640, height=480, share=0.75),
            PictureSize(width=2000, height=1000, share=0.25),
        ),
        "uncertainty": 0.2,
    }
    return SourceListing(**(values | changes))  # type: ignore[arg-type]


def plan(*sources: SourceListing, budgets: Budgets = PAPER, on: Cluster | None = None) -> Forecast:
    return forecast(Listing(name="test", sources=sources), budgets, IMAGES, on or cluster())


# against the real thing


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[SourceListing, Path, Path]:
    """A corpus, listed by reading all of it with the tokenizer that packed it; both its artifacts."""
    root = tmp_path_factory.mktemp("forecast")
    write_photos(root / "raw", count=120)
    with pytest.MonkeyPatch.context() as patch:
        run_clean(root / "raw", root / "clean")
        patch.setattr(listing_sample, "SPANS", 1000)
        patch.setattr(listing_sample, "RECORDS", 1000)
        what = {
            "sources": ["photos"],
            "tokenizer": {"train_bpe": {"vocab_size": 320}},
            "template": "casa-1",
            "backbone": "tiny",
            "image_placement": "window_start",
            "filters": {},
            "max_failures": 0.0,
            **Pack(text_tokens=256, image_tokens=128, max_side=64).model_dump(mode="json"),
            "seed": 0,
        }
        (root / "pack").mkdir()
        context = StageContext(
            name="pack", settings=what, placement={}, inputs={"photos": root / "clean"}, output=root / "pack"
        )
        pack.pack_sources(context, run_here)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "pack" / "tokenizer")
        # Around a text stand its role and its end; an image is followed by one token.
        listed = sample_source(
            FineVisionReader(files=Files(str(root / "raw")), source="photos"),
            lambda text: len(tokenizer.encode(f" {text}", add_special_tokens=False)) + 2,
        )
    return listed, root / "clean", root / "pack"


def test_records_pictures_and_image_tokens_are_those_of_the_artifacts(prepared):
    listed, clean, packed = prepared
    reader = CleanReader(clean, "train")
    found = forecast(Listing(name="t", sources=(listed,)), Budgets(text=256, image=128), TINY, cluster())
    card = json.loads((packed / "card.json").read_text())
    assert listed.rows == 120
    pictures = sum(len(reader.without_bytes(number)["media"]) for number in range(len(reader)))
    assert found.total("images").value == pytest.approx(pictures)
    assert found.total("image_tokens").value == pytest.approx(card["image_tokens"])


def test_text_tokens_and_sequences_come_close(prepared):
    listed, _, packed = prepared
    found = forecast(Listing(name="t", sources=(listed,)), Budgets(text=256, image=128), TINY, cluster())
    card = json.loads((packed / "card.json").read_text())
    assert found.total("text_tokens").value == pytest.approx(card["text_tokens"], rel=0.05)
    assert found.lower_bound.value == pytest.approx(card["lower_bound"], rel=0.06, abs=1)
    assert found.lower_bound.low <= card["lower_bound"] <= found.lower_bound.high


def test_storage_is_about_what_the_artifacts_take(prepared):
    listed, clean, packed = prepared
    found = forecast(Listing(name="t", sources=(listed,)), Budgets(text=256, image=128), TINY, cluster())
    reader = CleanReader(clean, "train")
    rows = [reader[number] for number in range(len(reader))]
    media = sum(len(own["bytes"]) for row in rows for own in row["media"])
    stored = sum(path.stat().st_size for path in clean.glob("train-*.arrow"))
    assert media < found.total("clean_bytes").value
    assert found.total("clean_bytes").value == pytest.approx(stored, rel=0.35)
    assert len(PackReader(packed)) > 1
    size = sum(path.stat().st_size for path in packed.glob("*.arrow"))
    assert found.total("pack_bytes").value == pytest.approx(size, rel=0.35)


def test_a_listing_of_a_corpus_names_its_files_and_what_could_not_be_used(prepared):
    listed, _, _ = prepared
    assert [file.name for file in listed.files] == ["photos/train-00000-of-00001.parquet"]
    assert listed.images_per_row == pytest.approx(114 / 120)
    assert "6 unusable" in listed.basis


# sampling


@dataclass(frozen=True)
class EndlessReader:
    """Records without pictures, of random lengths; it remembers how many were asked for."""

    seed: int
    asked: list[int]
    source: str = "endless"
    spans_count: int = 1000
    per_span: int = 100

    def spans(self, split: str) -> list[Span]:
        assert split == "train"
        return [
            Span(file=f"f{n // 10}.parquet", start=0, stop=self.per_span, bytes=5000, begin=n, end=n + 1)
            for n in range(self.spans_count)
        ]

    def inventory(self) -> Inventory:
        names = tuple(f"f{n}.parquet" for n in range(-(-self.spans_count // 10)))
        return Inventory(splits={"train": names, "test": ()}, sizes=dict.fromkeys(names, 50_000))

    def length(self, span: int, row: int) -> int:
        return int(np.random.default_rng([self.seed, span, row]).lognormal(5, 1))

    def read(self, span: Span) -> Iterator[Record]:
        for row in range(span.start, span.stop):
            self.asked.append(row)
            parts = (Text(role="assistant", text="x" * self.length(span.begin, row), trained=True),)
            sample = Sample(source=self.source, sample_id=str(row), parts=parts)
            yield Record(file=span.file, row=row, sample=sample, media=())


def test_only_a_bounded_sample_of_records_is_read():
    reader = EndlessReader(seed=0, asked=[])
    found = sample_source(reader, len)
    assert len(reader.asked) <= listing_sample.SPANS * listing_sample.RECORDS
    assert (found.rows, found.bytes, len(found.files)) == (100_000, 5_000_000, 100)


def test_the_stated_range_of_a_mean_holds_the_truth_about_as_often_as_it_says():
    truth = np.exp(5.5) - 0.5  # of a log-normal distribution, rounded down
    hits = 0
    for seed in range(60):
        found = sample_source(EndlessReader(seed=seed, asked=[], spans_count=8), len)
        hits += abs(found.text_tokens_per_row - truth) <= found.uncertainty * found.text_tokens_per_row
    assert hits >= 51  # of 60; 57 are expected, and fewer than 51 are about one in a thousand


def test_of_a_jpeg_only_the_header_counts():
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    data = encode(PILImage.fromarray(noise), "JPEG")

    class OnePicture(EndlessReader):
        def read(self, span: Span) -> Iterator[Record]:
            parts = (Image(media=0), Text(role="assistant", text="a", trained=True))
            media = (RawMedia(kind="image", data=data[: len(data) // 2], name="cut.jpg"),)
            yield Record(
                file="f0.parquet", row=0, sample=Sample(source="s", sample_id="0", parts=parts), media=media
            )

    found = sample_source(OnePicture(seed=0, asked=[], spans_count=1, per_span=1), len)
    assert found.sizes == (PictureSize(width=300, height=200, share=1.0),)


@dataclass(frozen=True)
class TallPicture(EndlessReader):
    """One record in two shows a picture 600 times as high as it is wide."""

    def read(self, span: Span) -> Iterator[Record]:
        for row in range(span.start, span.stop):
            height = 2400 if row % 2 else 8
            data = encode(PILImage.new("RGB", (4, height)), "PNG")
            parts = (Image(media=0), Text(role="assistant", text="a", trained=True))
            sample = Sample(source="s", sample_id=str(row), parts=parts)
            media = (RawMedia(kind="image", data=data, name="tall.png"),)
            yield Record(file=span.file, row=row, sample=sample, media=media)


def test_a_picture_that_cannot_be_packed_is_unusable_and_does_not_end_the_plan():
    reader = TallPicture(seed=0, asked=[], spans_count=1, per_span=20)
    found = sample_source(reader, len, tokens_of=IMAGES.size)
    assert found.sizes == (PictureSize(width=4, height=8, share=1.0),)
    assert found.images_per_row == pytest.approx(0.5)
    assert "10 unusable" in found.basis
    assert plan(found).total("images").value == pytest.approx(10)


def test_bytes_of_media_beside_the_records_come_from_the_sample_and_say_so(tmp_path):
    (tmp_path / "clips").mkdir()
    data = counting_video(tmp_path / "clips" / "a.mp4")
    write_jsonl(tmp_path / "train.jsonl", [live_record("clips/a.mp4")] * 70)
    reader = LiveWhisperXReader(files=Files(str(tmp_path)), source="live")
    found = sample_source(reader, len)
    written = (tmp_path / "train.jsonl").stat().st_size
    assert found.bytes == written + 70 * len(data)
    assert "of pictures and videos beside them from the sample" in found.basis
    inside = [finevision_row()] * 30
    write_finevision(tmp_path / "photos" / "0.parquet", inside)
    photos = sample_source(FineVisionReader(files=Files(str(tmp_path / "photos")), source="p"), len)
    assert photos.bytes == (tmp_path / "photos" / "0.parquet").stat().st_size
    assert photos.bytes_uncertainty == 0


def test_a_file_that_cannot_be_read_is_named_in_the_basis(tmp_path):
    for number in range(3):
        write_finevision(tmp_path / f"{number}.parquet", [finevision_row()] * 20)
    (tmp_path / "1.parquet").write_bytes(b"")
    found = sample_source(FineVisionReader(files=Files(str(tmp_path)), source="p"), len)
    assert "less about 20 in 1 files that cannot be read (1.parquet)" in found.basis


# arithmetic


def test_tokens_are_counted_size_by_size():
    found = plan(source(passes=2.0))
    tokens = 0.75 * IMAGES.size(480, 640).tokens + 0.25 * IMAGES.size(1000, 2000).tokens
    assert found.total("image_tokens").value == pytest.approx(1000 * 2 * 1.5 * tokens)
    assert found.total("text_tokens").value == pytest.approx(1000 * 2 * 120)
    assert found.total("images").value == pytest.approx(1500)  # each is read once
    assert found.sources[0].samples == 2000


def test_a_frame_of_a_video_counts_at_its_own_resolution_and_a_video_gets_a_sequence():
    frames = (PictureSize(width=1280, height=720, share=1.0),)
    clips = source(name="clips", video=True, images_per_row=100.0, sizes=frames)
    found = plan(source(), clips)
    assert found.sources[1].image_tokens.value == pytest.approx(
        1000 * 100 * IMAGES.size(720, 1280, frame=True).tokens
    )
    alone = plan(source())
    assert found.video_sequences == 1000
    assert found.sequences.value == pytest.approx(alone.sequences.value + 1000)
    assert found.fill == alone.fill


@pytest.mark.parametrize("budgets", [PAPER, Budgets(text=128, image=20_480), Budgets(text=10**6, image=512)])
def test_the_bound_is_tokens_divided_by_budget_and_the_scarce_budget_is_nearly_full(budgets):
    found = plan(source(), budgets=budgets)
    text, image = found.total("text_tokens").value, found.total("image_tokens").value
    bound = max(ceil(text / budgets.text), ceil(image / budgets.image))
    assert found.lower_bound.value == bound
    assert bound <= found.sequences.value <= 1.005 * bound + 1e-9
    assert max(found.fill.values()) == pytest.approx(1 / 1.005, rel=0.02)


def test_twice_the_cluster_takes_half_the_time_to_clean():
    one, two = plan(source(), on=cluster(nodes=4)), plan(source(), on=cluster(nodes=8))
    assert two.clean.seconds.value == pytest.approx(one.clean.seconds.value / 2)
    assert two.clean.network.value == pytest.approx(one.clean.network.value / 2)


def test_the_packer_runs_on_one_core_however_many_there_are():
    few = plan(source(), on=cluster(nodes=1, cpus=1, pack_samples=10.0))
    many = plan(source(), on=cluster(nodes=100, cpus=100, pack_samples=10.0))
    assert many.pack.compute.value >= 1000 / 10.0
    assert few.pack.compute.value > many.pack.compute.value


def test_what_bounds_a_stage_is_named():
    assert plan(source(), on=cluster(gbps=0.001)).clean.bound_by == "network"
    assert plan(source(), on=cluster(clean_megapixels=0.001)).clean.bound_by == "cores"


def test_ranges_hold_the_value_grow_with_doubt_and_vanish_without_it():
    for doubt in (0.0, 0.1, 0.5, 1.5):
        found = plan(source(uncertainty=doubt, bytes_uncertainty=doubt))
        for estimate in (
            *(
                found.total(name)
                for name in ("images", "text_tokens", "read_bytes", "clean_bytes", "pack_bytes")
            ),
            found.sequences,
            found.clean.seconds,
            found.pack.seconds,
        ):
            assert 0 <= estimate.low <= estimate.value <= estimate.high
            assert (estimate.low == estimate.high) == (doubt == 0)
    assert Estimate.about(100, 0.2) == Estimate(value=100, low=80, high=120)


# listings as files


def test_a_listing_survives_the_way_through_a_file(tmp_path):
    listing = Listing(name="mixture", sources=(source(), source(name="other", video=True, passes=6.0)))
    write_listing(listing, tmp_path / "listing.json")
    assert read_listing(tmp_path / "listing.json") == listing


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sizes": (PictureSize(width=1, height=1, share=0.5),)}, "add up to 0.5"),
        ({"files": ()}, "no file"),
        ({"text_tokens_per_row": -1.0}, "negative"),
    ],
)
def test_a_listing_that_contradicts_itself_is_refused(tmp_path, change, problem):
    write_listing(Listing(name="m", sources=(replace(source(), **change),)), tmp_path / "listing.json")
    with pytest.raises(ConfigError, match=problem):
        read_listing(tmp_path / "listing.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "x", "sources": [{"name": "y"}]}', '{"name": 1, "sources": []}']
)
def test_what_is_no_listing_is_refused_as_such(tmp_path, text):
    path = tmp_path / "listing.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_listing(path)
    with pytest.raises(ConfigError, match="no listing"):
        read_listing(tmp_path / "missing.json")


def test_the_papers_listing_is_what_its_script_writes_and_has_24_million_pictures():
    spec = importlib.util.spec_from_file_location("paper_listing", ROOT / "examples" / "paper_listing.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = read_listing(Path("paper"))
    assert written.sources == tuple(script.sources())
    assert read_listing(Path("livecc")).sources == (script.live_source(),)
    found = forecast(written, PAPER, IMAGES, cluster())
    pictures = sum(own.images.value for own in found.sources if not own.video)
    assert pictures == pytest.approx(24e6, rel=1e-3)
    docmatix = next(own for own in found.sources if own.name == "docmatix")
    assert docmatix.samples == 6 * docmatix.rows
