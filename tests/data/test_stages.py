"""The corpus, clean and pack stages one after the other, on a real Ray, over the quickstart's corpora."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from itertools import compress
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from casa_core.errors import ConfigError, DataError
from casa_core.media.decode import decode_image
from casa_core.types import Image, Text
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.generate import run as corpus
from pipelines.data.pack import run as pack
from pipelines.data.pack.processor import Encoding, load_processor
from pipelines.data.pack.sequences import documents_of
from pipelines.data.store.quarantine import read_quarantine
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.data.store.rows import CleanSample
from pipelines.recipe.pack import Pack
from tests.support.own_ray import own_ray

MAKE = {
    "vqa": {"generator": "easy_vqa", "train_rows": 240, "test_rows": 48},
    "live": {"generator": "moving_shapes", "train_clips": 12, "test_clips": 2, "seconds": 4.0, "fps": 10},
}
READ = {"vqa": {"reader": "finevision"}, "live": {"reader": "live_whisperx", "fps": 2.0}}
PACK = {
    "sources": ["vqa", "live"],
    "tokenizer": {"train_bpe": {"vocab_size": 320}},
    "template": "casa-1",
    "backbone": "tiny",
    "image_placement": "window_start",
    "filters": {},
    "max_failures": 0.5,
    **Pack(text_tokens=400, image_tokens=160, max_side=64).model_dump(mode="json"),
    "seed": 0,
}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """A small Ray of this module's own."""
    with own_ray(2):
        yield


def run(stage, output: Path, what, inputs=None, workers: int = 2, steps: list | None = None):
    output.mkdir(parents=True, exist_ok=True)
    context = StageContext(
        name=output.name,
        settings=what,
        placement={"data": {"workers": workers}},
        inputs=inputs or {},
        output=output,
        progress=lambda *step: (steps if steps is not None else []).append(step),
    )
    return stage.run_stage(context)


def run_clean(name: str, corpora: dict[str, Path], output: Path, max_failures: float = 0.2, **options):
    what = {"source": name, "max_failures": max_failures, **READ[name]}
    return run(clean, output, what, {"corpus": corpora[name]}, **options)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != ".digests"  # which goes when the artifact is committed
    }


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("corpora")
    for name, make in MAKE.items():
        run(corpus, root / name, {"make": make, "seed": 0})
    return {name: root / name for name in MAKE}


@pytest.fixture(scope="module")
def cleaned(corpora, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clean")
    for name in MAKE:
        run_clean(name, corpora, root / name)
    return {name: root / name for name in MAKE}


@pytest.fixture(scope="module")
def packed(cleaned, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("pack") / "pack"
    run(pack, output, PACK, cleaned)
    return output


# clean


def test_the_three_broken_records_are_listed_and_all_others_written(cleaned):
    found = [
        (entry.source, entry.file, entry.row, entry.reason)
        for name in MAKE
        for entry in read_quarantine(cleaned[name] / "quarantine.parquet")
    ]
    assert found == [
        ("vqa", "vqa/train-00000-of-00001.parquet", 80, "truncated_image"),
        ("vqa", "vqa/train-00000-of-00001.parquet", 160, "missing_image"),
        ("live", "train.jsonl", 6, "empty_file"),
    ]
    for name, train, test in (("vqa", 240, 48), ("live", 12, 2)):
        card = json.loads((cleaned[name] / "card.json").read_text())
        assert len(CleanReader(cleaned[name], "train")) == card["splits"]["train"]["rows"] == train
        assert len(CleanReader(cleaned[name], "test")) == card["splits"]["test"]["rows"] == test
        for split in card["splits"].values():
            assert split["records"] == split["rows"] + split["quarantined"]
    assert sorted(path.name for path in cleaned["vqa"].iterdir() if path.name != ".digests") == [
        "card.json",
        "quarantine.parquet",
        "test-00000.arrow",
        "train-00000.arrow",
    ]


def test_cleaning_gives_the_same_bytes_with_one_and_with_two_workers(corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "RECORDS_PER_SHARD", 4)  # the plan is the driver's: many shards
    monkeypatch.setattr("pipelines.data.read.formats.lines.RECORDS_PER_SPAN", 4)
    for workers in (1, 2):
        run_clean("live", corpora, tmp_path / str(workers), workers=workers)
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert one == two
    assert len([name for name in one if name.startswith("train-")]) == 4


def test_a_killed_cleaning_goes_on_with_the_missing_shards(corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "RECORDS_PER_SHARD", 4)
    monkeypatch.setattr("pipelines.data.read.formats.lines.RECORDS_PER_SPAN", 4)
    run_clean("live", corpora, tmp_path / "whole")

    def die(done: float, total: float, message: str = "") -> None:
        raise KeyboardInterrupt

    what = {"source": "live", "max_failures": 0.2, **READ["live"]}
    killed = StageContext(
        name="clean-live",
        settings=what,
        placement={"data": {"workers": 1}},
        inputs={"corpus": corpora["live"]},
        output=tmp_path / "killed",
        progress=die,
    )
    killed.output.mkdir()
    with pytest.raises(KeyboardInterrupt):
        clean.run_stage(killed)
    assert not (killed.output / "card.json").exists()
    (killed.output / ".train-00002.arrow.4711").write_bytes(b"half a shard")
    finished = {path.name: path.stat().st_mtime_ns for path in killed.output.glob("train-*.arrow")}
    reported = {path.stem for path in (killed.output / ".reports").glob("*.json")}
    assert reported
    run_clean("live", corpora, killed.output)
    assert contents(killed.output) == contents(tmp_path / "whole")
    for name in reported & {name.removesuffix(".arrow") for name in finished}:
        assert (killed.output / f"{name}.arrow").stat().st_mtime_ns == finished[f"{name}.arrow"]


def test_a_source_that_is_mostly_broken_stops_the_run_and_says_why(corpora, tmp_path):
    with pytest.raises(DataError, match="2 of 290") as caught:
        run_clean("vqa", corpora, tmp_path / "out", max_failures=0.001)
    assert "1 x missing_image, 1 x truncated_image" in caught.value.why
    assert len(read_quarantine(tmp_path / "out" / "quarantine.parquet")) == 2


def test_progress_is_told_as_shards_are_done(corpora, tmp_path):
    steps: list = []
    run_clean("live", corpora, tmp_path / "out", steps=steps)
    assert steps[-1] == (15, 15, "1 quarantined")


# pack


def test_every_sample_is_packed_once_and_comes_back_bit_for_bit(packed, cleaned):
    """Text, answer mask, picture bytes and times, against the clean artifact and an encoding of its own."""
    folder = str(packed / "tokenizer")
    encoding = Encoding(
        tokenizer=folder,
        template="casa-1",
        backbone="tiny",
        max_side=64,
        max_frame_side=64,
        max_video_tokens=160,
        min_frame_side=None,
        video_over_budget="smaller",
        image_placement="window_start",
    )
    processor = load_processor(encoding)
    readers = {name: CleanReader(cleaned[name], "train") for name in MAKE}
    rows = {(name, row["sample_id"]): row for name in MAKE for row in readers[name]}
    seen = set()
    for sequence in PackReader(packed):
        for document in documents_of(sequence):
            key = (document.source, document.sample_id)
            assert key not in seen
            seen.add(key)
            sample = CleanSample.from_row(rows[key]).sample
            pictures = [part for part in sample.parts if isinstance(part, Image)]
            sizes = [
                processor.image_size(*decode_image(part.data).shape[:2])
                if part.timestamp is None
                else processor.image_size(64, 64)
                for part in pictures
            ]
            encoded = processor.encode(sample, sizes)
            assert document.input_ids == encoded.input_ids
            assert document.loss_mask == encoded.loss_mask
            assert document.image_positions == encoded.image_positions
            assert document.turns == encoded.turns
            for image, part, size in zip(document.images, pictures, encoded.images, strict=True):
                reference = readers[image["source"]].media(image["row"], image["media"])
                assert reference == part.data
                assert image["timestamp"] == part.timestamp
                assert {name: image[name] for name in asdict(size)} == asdict(size)
            answers = list(compress(document.input_ids, document.loss_mask))
            truth = [part.text for part in sample.parts if isinstance(part, Text) and part.trained]
            assert processor.decode_text(answers).split() == " ".join(truth).split()
    assert seen == set(rows)


def test_sequences_keep_both_budgets_and_videos_lie_alone(packed):
    for sequence in PackReader(packed):
        assert sequence["text_tokens"] == len(sequence["input_ids"]) == len(sequence["loss_mask"])
        assert sequence["text_tokens"] <= PACK["text_tokens"]
        assert sequence["image_tokens"] == sum(image["tokens"] for image in sequence["images"])
        assert sequence["image_tokens"] <= PACK["image_tokens"]
        starts = sequence["document_starts"]
        assert starts[0] == 0
        assert starts == sorted(starts)
        assert len(starts) == len(sequence["documents"])
        times = [image["timestamp"] for image in sequence["images"]]
        if sequence["kind"] == "video":
            assert len(starts) == 1
            assert None not in times
        else:
            assert set(times) == {None}


def test_the_index_and_the_card_describe_the_shards(packed):
    reader = PackReader(packed)
    kinds = [sequence["kind"] for sequence in reader]
    for kind in ("image", "video"):
        assert reader.by_kind[kind].tolist() == [n for n, own in enumerate(kinds) if own == kind]
    card = json.loads((packed / "card.json").read_text())
    assert card["sequences"] == len(reader)
    assert card["text_tokens"] == sum(sequence["text_tokens"] for sequence in reader)
    assert card["image_tokens"] == sum(sequence["image_tokens"] for sequence in reader)
    assert card["sources"]["vqa"]["samples"] == 240
    assert card["sources"]["live"]["samples"] == card["by_kind"]["video"]["sequences"] == 12
    assert card["by_kind"]["image"]["sequences"] <= 1.05 * card["by_kind"]["image"]["lower_bound"] + 1
    assert sum(card["histograms"]["text"]["counts"]) == len(reader)
    assert sum(card["sample_histograms"]["image"]["counts"]) == 252
    tokenizer = (packed / "tokenizer" / "tokenizer.json").read_bytes()
    assert reader.metadata["casa.tokenizer"] == hashlib.sha256(tokenizer).hexdigest()
    assert reader.metadata["casa.template"] == card["encoding"]["casa.template"]


def test_packing_gives_the_same_bytes_with_one_and_with_two_workers(packed, cleaned, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".packed-00000.arrow.4711").write_bytes(b"left by a killed attempt")
    run(pack, tmp_path / "one", PACK, cleaned, workers=1)
    assert contents(tmp_path / "one") == contents(packed)
    # How the work is cut decides nothing about the sequences either.
    monkeypatch.setattr(pack, "ROWS_PER_TASK", 50)
    monkeypatch.setattr(pack, "SEQUENCES_PER_SHARD", 10)
    run(pack, tmp_path / "cut", PACK, cleaned)
    assert list(PackReader(tmp_path / "cut")) == list(PackReader(packed))


def test_another_seed_deals_the_same_sequences_in_another_order(packed, cleaned, tmp_path):
    run(pack, tmp_path / "other", PACK | {"seed": 1}, cleaned)
    ours, theirs = list(PackReader(packed)), list(PackReader(tmp_path / "other"))
    assert ours != theirs
    key = lambda sequence: sequence["documents"][0]["sample_id"]  # noqa: E731
    assert sorted(ours, key=key) == sorted(theirs, key=key)


def test_samples_over_a_budget_are_cut_or_quarantined_with_their_reason(cleaned, tmp_path):
    tight = PACK | {"image_tokens": 127}  # a clip has 8 frames of 16 tokens
    summary = run(pack, tmp_path / "image", tight, cleaned)
    assert summary["quarantine"] == {}
    packs = PackReader(tmp_path / "image")
    windows = [len(packs[int(number)]["images"]) for number in packs.by_kind["video"]]
    assert sorted(windows) == [1] * 12 + [7] * 12
    videos = json.loads((tmp_path / "image" / "card.json").read_text())["videos"]["live"]
    assert (videos["videos"], videos["cut"], videos["windows"]) == (12, 12, 24)
    whole = tight | {"split": False, "max_failures": 1.0}
    summary = run(pack, tmp_path / "whole", whole, cleaned)
    assert summary["quarantine"] == {"over_image_budget": 12}
    assert len(PackReader(tmp_path / "whole").by_kind["video"]) == 0
    entry = read_quarantine(tmp_path / "whole" / "quarantine.parquet")[0]
    assert (entry.source, entry.sample_id) == ("live", "train/0")
    assert entry.detail == "The sample has 128 image tokens; a sequence holds 127."
    own = {"tokenizer": {"path": str(tmp_path / "image" / "tokenizer")}, "split": False}
    what = PACK | {"text_tokens": 36, "max_failures": 1.0, **own}
    summary = run(pack, tmp_path / "text", what, cleaned)
    assert summary["quarantine"]["over_text_budget"] >= 12
    packed = sum(len(sequence["documents"]) for sequence in PackReader(tmp_path / "text"))
    assert packed + summary["quarantine"]["over_text_budget"] == 252
    with pytest.raises(ConfigError, match="no sample to pack"):
        run(pack, tmp_path / "none", PACK | {"text_tokens": 3, "max_failures": 1.0}, cleaned)


def test_a_tokenizer_can_be_brought_along(packed, cleaned, tmp_path):
    run(pack, tmp_path / "own", PACK | {"tokenizer": {"path": str(packed / "tokenizer")}}, cleaned)
    assert list(PackReader(tmp_path / "own")) == list(PackReader(packed))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "own" / "tokenizer")
    assert tokenizer.eos_token == "<|end|>"
    with pytest.raises(ConfigError, match="expected exactly one of `train_bpe`"):
        run(pack, tmp_path / "none", PACK | {"tokenizer": {}}, cleaned)


def test_an_error_in_a_worker_arrives_with_its_words(cleaned, tmp_path):
    with pytest.raises(ConfigError, match="no backbone named 'huge'"):
        run(pack, tmp_path / "huge", PACK | {"backbone": "huge"}, cleaned)
