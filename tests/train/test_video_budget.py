"""A long video with a question: training sees the frames and sizes that evaluation and serving see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.engine.inputs import prompt_chunk
from casa_core.errors import StoreError
from casa_core.processing.processor import CasaProcessor
from casa_core.types import Image, Sample, Text
from pipelines.dag.context import StageContext
from pipelines.data.pack import run as pack
from pipelines.data.pack.sequences import documents_of
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.data.store.rows import CleanSample, Media
from pipelines.data.store.shard_pipeline import run_here
from pipelines.data.store.shard_writing import CARD
from pipelines.train.loader import SequenceReader
from tests.support.data.clean import clip, write_clean
from tests.support.data.media import grey_level
from tests.support.data.prepared import PACK

FRAMES = 20
QUESTION = Text(role="user", text="what moves")
ANSWER = Text(role="assistant", text="a red circle", trained=True)


def video() -> tuple[Sample, list[Media]]:
    """Five seconds of video of 64 x 64 pixels, a frame each quarter of a second, and a question."""
    frames = tuple(Image(timestamp=number / 4) for number in range(FRAMES))
    return Sample(source="videos", sample_id="v/1", parts=(*frames, QUESTION, ANSWER)), [clip()]


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "videos", [video()], shards=1)


def run_pack(cleaned: Path, output: Path, image_tokens: int, **changes: Any) -> dict[str, Any]:
    output.mkdir()
    what = PACK | {
        "sources": ["videos"],
        "mixture": {},
        "filters": {},
        "video": {"text_tokens": 80, "image_tokens": image_tokens},
        "min_frame_side": None,
    }
    context = StageContext(
        name="pack", settings=what | changes, placement={}, inputs={"videos": cleaned}, output=output
    )
    pack.pack_sources(context, run_here)
    return json.loads((output / CARD).read_text())["videos"]["videos"]


@pytest.mark.parametrize(
    ("image_tokens", "changes", "side", "kept"),
    [
        (320, {}, 64, FRAMES),  # 20 frames of 16 tokens
        (319, {}, 48, FRAMES),  # 15 tokens each: 3 x 3
        (80, {}, 32, FRAMES),  # 4 tokens each, the floor: half of the side
        (79, {}, 32, 19),
        (40, {}, 32, 10),
        (79, {"min_frame_side": 16}, 16, FRAMES),
        (319, {"video_over_budget": "fewer"}, 64, 19),
        (80, {"video_over_budget": "fewer"}, 64, 5),
    ],
)
def test_training_and_inference_see_the_same_frames_in_the_same_size(
    cleaned, tmp_path, image_tokens, changes, side, kept
):
    counts = run_pack(cleaned, tmp_path / "pack", image_tokens, **changes)
    processor = CasaProcessor.from_pretrained(tmp_path / "pack" / "tokenizer")
    packed = SequenceReader(tmp_path / "pack", {"videos": cleaned}, processor)
    (trained,) = [packed[number] for number in range(len(packed.pack))]

    (document,) = documents_of(packed.pack[0])
    shown = [image["timestamp"] for image in document.images]
    assert {(image["height"], image["width"]) for image in document.images} == {(side, side)}
    assert shown == [number * FRAMES // kept / 4 for number in range(kept)]
    assert document.frames == FRAMES
    assert sum(trained.image_tokens) == kept * (side // 16) ** 2 <= image_tokens
    assert counts["smaller"] == (side < 64)
    assert counts["sizes"] == ({f"{side} x {side}": 1} if side < 64 else {})
    assert (counts["fewer"], counts["least_kept"]) == (int(kept < FRAMES), kept / FRAMES)

    sample = CleanSample.from_row(CleanReader(cleaned, "train")[0]).sample
    asked = replace(sample, parts=sample.parts[:-1])
    prompt = prompt_chunk(asked, processor, images_withheld=False)
    called = processor(asked)
    assert list(prompt.ids) == trained.input_ids[: len(prompt.ids)] == called["input_ids"][0].tolist()
    assert list(prompt.grids) == list(trained.image_grids)
    assert torch.equal(torch.cat(list(prompt.patches_PE)), torch.cat(list(trained.patches_PE)))
    assert torch.equal(called["pixel_values"], torch.cat(list(trained.patches_PE)))
    # They are the right frames: each has a grey of its own.
    mean, std = processor.image_mean[0], processor.image_std[0]
    for time, patches in zip(shown, trained.patches_PE, strict=True):
        grey = float(patches.mean()) * std + mean
        assert grey * 255 == pytest.approx(grey_level(round(time * 4)), abs=3)


def test_refused_videos_are_quarantined_and_the_rest_of_the_stage_goes_on(cleaned, tmp_path):
    from casa_core.errors import ConfigError

    with pytest.raises(ConfigError, match="no sample to pack"):
        run_pack(cleaned, tmp_path / "pack", 319, video_over_budget="refuse", max_failures=1.0)


def test_a_pack_is_not_read_with_a_processor_of_another_resolution(cleaned, tmp_path):
    run_pack(cleaned, tmp_path / "pack", 319)
    processor = CasaProcessor.from_pretrained(tmp_path / "pack" / "tokenizer")
    processor.max_frame_side = 32
    reader = SequenceReader(tmp_path / "pack", {"videos": cleaned}, processor)
    with pytest.raises(StoreError, match="Run the pack stage again"):
        reader.read(0)


def test_the_packed_rows_name_the_bound_on_frames_only_where_there_is_one(cleaned, tmp_path):
    for tokens, bound in ((320, None), (319, 15), (40, 4)):
        run_pack(cleaned, tmp_path / str(tokens), tokens)
        row = PackReader(tmp_path / str(tokens))[0]
        assert {image["most_tokens"] for image in row["images"]} == {bound}
