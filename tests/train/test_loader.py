"""The loader: packed rows and the bytes they refer to become the same batches for any number of workers."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.backbones.tiny import tiny_config
from casa_core.batch import PackedBatch, PackedSequence, collate
from casa_core.errors import DataError, StoreError
from casa_core.media.decode import VideoFrames, decode_image
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.train.loader import LoadedStep, SequenceReader, Share, blank_picture, iterate_steps
from pipelines.train.sampler import StepSampler
from tests.support.core.artifacts import TrainingData, write_training_data

STEPS = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return write_training_data(tmp_path_factory.mktemp("training"))


def reader_of(data: TrainingData, **options: Any) -> SequenceReader:
    processor = CasaProcessor.from_pretrained(data.pack / "tokenizer")
    assert isinstance(processor, CasaProcessor)
    return SequenceReader(data.pack, data.sources, processor, **options)


def steps(
    data: TrainingData, start: int = 0, stop: int = STEPS, rank: int = 0, of: int = 1
) -> list[LoadedStep]:
    reader = reader_of(data)
    order = StepSampler(
        reader.pack.by_kind, ratio=(2, 1), sequences_per_step={"image": 3, "video": 2}, seed=5
    )
    share = Share(rank=rank, world_size=of)
    return list(iterate_steps(reader, order, start=start, stop=stop, share=share))


def only(step: LoadedStep) -> PackedBatch:
    (micro,) = step.batches
    return micro.batch


def same(one: LoadedStep, other: LoadedStep) -> bool:
    if (one.number, one.step) != (other.number, other.step):
        return False
    (mine, theirs) = (only(step) for step in (one, other))
    assert mine.images is not None
    assert theirs.images is not None
    return (
        torch.equal(mine.input_ids, theirs.input_ids)
        and mine.packing == theirs.packing
        and torch.equal(mine.loss_mask, theirs.loss_mask)
        and torch.equal(mine.images.patches_PE, theirs.images.patches_PE)
    )


def test_a_row_comes_with_exactly_the_pictures_it_names(data: TrainingData):
    reader, pack = reader_of(data), PackReader(data.pack)
    clean = {name: CleanReader(folder, "train") for name, folder in data.sources.items()}
    processor = CasaProcessor.from_pretrained(data.pack / "tokenizer")
    for number in range(len(pack)):
        row, sequence = pack[number], reader[number]
        assert list(sequence.input_ids) == row["input_ids"]
        assert len(sequence.patches_PE) == len(row["images"]) == len(row["image_positions"])
        for image, patches_PE in zip(row["images"], sequence.patches_PE, strict=True):
            stored = clean[image["source"]].media(image["row"], image["media"])
            time = image["timestamp"]
            rgb = decode_image(stored) if time is None else next(VideoFrames(stored).at([time]))
            assert torch.equal(patches_PE, processor.patches(rgb, processor.image_size(*rgb.shape[:2])))


def test_the_blind_baseline_reads_the_same_text_and_no_picture(data: TrainingData):
    seeing, blind = reader_of(data)[0], reader_of(data, images=False)[0]
    assert isinstance(blind, PackedSequence)
    assert (blind.input_ids, blind.loss_mask) == (seeing.input_ids, seeing.loss_mask)
    assert list(blind.document_starts) == list(seeing.document_starts)
    assert not blind.image_positions
    assert not blind.patches_PE


def test_patches_wait_in_what_the_model_computes_in(data: TrainingData):
    exact, rounded = reader_of(data), reader_of(data, dtype=torch.bfloat16)
    number = exact.pack.by_kind["image"][0]
    for wide, narrow in zip(exact[number].patches_PE, rounded[number].patches_PE, strict=True):
        assert narrow.dtype == torch.bfloat16
        assert torch.equal(narrow, wide.bfloat16())


def test_a_loader_started_in_the_middle_goes_on_as_if_it_had_never_stopped(data: TrainingData):
    whole = steps(data)
    for start in (1, 4, STEPS - 1):
        rest = steps(data, start=start)
        assert [step.number for step in rest] == list(range(start, STEPS))
        assert all(same(one, other) for one, other in zip(rest, whole[start:], strict=True))
    assert steps(data, start=STEPS) == []


def test_two_workers_together_read_what_one_would(data: TrainingData):
    for alone, first, second in zip(
        steps(data), steps(data, rank=0, of=2), steps(data, rank=1, of=2), strict=True
    ):
        assert alone.step == first.step == second.step
        for count in ("text_tokens", "image_tokens", "trained_tokens"):
            parts = [getattr(only(step), count) for step in (first, second)]
            assert getattr(only(alone), count) == sum(parts)


def test_data_packed_under_other_image_settings_is_refused(data: TrainingData):
    processor = CasaProcessor.from_pretrained(data.pack / "tokenizer")
    assert isinstance(processor, CasaProcessor)
    other = CasaProcessor(processor.tokenizer, max_side=16)
    reader = SequenceReader(data.pack, data.sources, other)
    with pytest.raises(StoreError, match="were packed"):
        deque(reader[number] for number in range(len(reader.pack)))


def test_a_loader_that_fails_raises_in_the_step_that_needs_the_data(data: TrainingData, tmp_path: Path):
    missing = TrainingData(data.pack, {**data.sources, "vqa": tmp_path / "gone"})
    with pytest.raises(StoreError, match="is not a finished artifact"):
        steps(missing)


def test_a_share_without_pictures_still_gives_every_parameter_a_gradient_and_changes_none(data: TrainingData):
    reader = reader_of(data)
    number = reader.pack.by_kind["image"][0]
    text_only = replace(reader[number], image_positions=(), image_tokens=(), image_grids=(), patches_PE=())
    tokenizer: Any = reader.processor.tokenizer
    torch.manual_seed(0)
    model = CasaForConditionalGeneration(
        tiny_config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=reader.processor.end_id)
    )

    def gradients(*sequences: PackedSequence) -> tuple[float, dict[str, torch.Tensor | None]]:
        model.zero_grad()
        output = model(**collate(sequences).inputs())
        output.loss_sum.backward()
        return output.loss_sum.item(), {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        }

    loss, alone = gradients(text_only)
    loss_with, joined = gradients(text_only, blank_picture(reader.processor))
    assert loss_with == pytest.approx(loss, rel=1e-6)
    assert any(gradient is None for gradient in alone.values())
    for name, gradient in joined.items():
        assert gradient is not None, name
        expected = alone[name]
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if expected is None else expected)


def test_any_number_of_threads_gives_the_same_steps(data: TrainingData):
    reader = reader_of(data)
    order = StepSampler(
        reader.pack.by_kind, ratio=(2, 1), sequences_per_step={"image": 3, "video": 2}, seed=5
    )
    many = iterate_steps(reader, order, start=0, stop=STEPS, share=Share(), threads=4)
    assert all(same(one, other) for one, other in zip(many, steps(data), strict=True))


def test_a_loader_that_is_left_early_leaves_no_thread(data: TrainingData):
    reader = reader_of(data)
    order = StepSampler(
        reader.pack.by_kind, ratio=(2, 1), sequences_per_step={"image": 3, "video": 2}, seed=5
    )
    before = threading.active_count()
    loading = iterate_steps(reader, order, start=0, stop=STEPS, share=Share(), threads=4)
    next(loading)
    assert threading.active_count() > before
    loading.close()
    assert threading.active_count() == before


def test_a_picture_that_has_changed_since_cleaning_is_named(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
):
    reader = reader_of(data)
    monkeypatch.setattr(CleanReader, "media_of", lambda self, keys: [b"junk" for _ in keys])
    with pytest.raises(DataError, match=r"Media 0 of row \d+ of vqa cannot be decoded"):
        reader.read(int(reader.pack.by_kind["image"][0]))
