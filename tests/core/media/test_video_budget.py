"""Videos over their image budget: smaller frames, then fewer, by one rule for packing and inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from casa_core.errors import ConfigError
from casa_core.media.images import ImageSettings
from casa_core.media.video_budget import fit_sample, fit_video
from casa_core.types import Image, Sample, Text

QWEN = ImageSettings.for_tower(Qwen2_5_VLVisionConfig())
PAPER = 46_080
"""Image tokens of a sequence in the paper's image-video stage (Table 10)."""
LIVECC = 30_720


def tokens(own: ImageSettings, frames, fit) -> list[int]:
    return [own.size(*frames[n], frame=True, most_tokens=fit.most_tokens).tokens for n in fit.kept]


@pytest.mark.parametrize(
    "native", [(720, 1280), (360, 640), (448, 448), (1080, 1920), (640, 360), (480, 640)]
)
def test_the_papers_three_minutes_at_two_frames_a_second_keep_every_frame(native):
    frames = [native] * 360
    fit = fit_video(QWEN, frames, PAPER)
    assert fit.kept == tuple(range(360))
    assert fit.most_tokens == 128
    assert 100 <= max(tokens(QWEN, frames, fit)) <= 128
    assert sum(tokens(QWEN, frames, fit)) <= PAPER


def test_ninety_seconds_of_square_frames_fit_as_they_are_and_a_frame_more_does_not():
    fit = fit_video(QWEN, [(448, 448)] * 180, PAPER)
    assert (len(fit.kept), fit.most_tokens) == (180, None)
    fit = fit_video(QWEN, [(448, 448)] * 181, PAPER)
    assert (len(fit.kept), fit.most_tokens) == (181, PAPER // 181)
    assert len(fit_video(QWEN, [(448, 448)] * 120, LIVECC).kept) == 120


@pytest.mark.parametrize("most", [128, 100, 64, 77])
@pytest.mark.parametrize("native", [(720, 1280), (361, 642), (1999, 613), (448, 448), (90, 3000)])
def test_a_bounded_frame_has_the_size_that_qwens_rule_gives_for_as_many_pixels(most, native):
    size = QWEN.size(*native, frame=True, most_tokens=most)
    theirs = smart_resize(*native, 28, min_pixels=56**2, max_pixels=most * 28**2)
    assert (size.height, size.width) == theirs
    assert size.tokens <= most


def test_six_minutes_still_keep_every_frame_and_of_longer_videos_evenly_spread_ones_are_kept():
    square = (448, 448)
    fit = fit_video(QWEN, [square] * 720, PAPER)
    assert (len(fit.kept), fit.most_tokens) == (720, 64)
    fit = fit_video(QWEN, [square] * 1800, PAPER)  # a quarter of an hour
    assert (len(fit.kept), fit.most_tokens) == (720, 64)
    assert set(np.diff(fit.kept)) == {2, 3}
    assert fit.kept[0] == 0
    assert 1800 - fit.kept[-1] <= 3


def test_fewer_keeps_the_size_of_frames_and_refuse_keeps_everything():
    square = [(448, 448)] * 360
    fewer = fit_video(replace(QWEN, video_over_budget="fewer"), square, PAPER)
    assert fewer.kept == tuple(range(0, 360, 2))
    assert fewer.most_tokens is None
    refused = fit_video(replace(QWEN, video_over_budget="refuse"), square, PAPER)
    assert (refused.kept, refused.most_tokens) == (tuple(range(360)), None)


def test_the_floor_can_be_set_and_is_half_the_side_of_the_largest_frames_otherwise():
    assert QWEN.min_frame_tokens == 64
    assert replace(QWEN, min_frame_side=112).min_frame_tokens == 16
    assert replace(QWEN, min_frame_side=448).min_frame_tokens == 256
    assert ImageSettings(max_side=64).min_frame_tokens == 4
    assert ImageSettings(max_side=16).min_frame_tokens == 1
    fit = fit_video(replace(QWEN, min_frame_side=448), [(448, 448)] * 360, PAPER)
    assert (len(fit.kept), fit.most_tokens) == (180, 256)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="min_frame_side = 8"):
        replace(QWEN, min_frame_side=8)
    with pytest.raises(ConfigError, match=r"smaller, fewer, refuse"):
        replace(QWEN, video_over_budget="crop")  # pyright: ignore[reportArgumentType]


natives = st.tuples(st.integers(30, 900), st.integers(30, 900))


@settings(deadline=None, max_examples=200)
@given(
    frames=st.lists(natives, min_size=1, max_size=3).flatmap(
        lambda sizes: st.lists(st.sampled_from(sizes), min_size=1, max_size=200)
    ),
    budget=st.integers(1, 20_000),
    rule=st.sampled_from(["smaller", "fewer"]),
)
def test_what_is_kept_is_within_the_budget_and_nothing_is_given_up_in_vain(frames, budget, rule):
    own = replace(QWEN, video_over_budget=rule)
    fit = fit_video(own, frames, budget)
    full = [own.size(*native, frame=True).tokens for native in frames]
    if sum(full) <= budget:
        assert (fit.kept, fit.most_tokens) == (tuple(range(len(frames))), None)
        return
    found = tokens(own, frames, fit)
    if sum(found) > budget:  # not even one frame fits: the caller refuses the sample
        assert fit.kept == tuple(range(len(frames)))
        assert min(full) > budget or max(full) > budget
        return
    if len(fit.kept) < len(frames):
        gaps = np.diff([*fit.kept, len(frames)])
        assert gaps.max() - gaps.min() <= 1
        assert fit.most_tokens in (None, 64)  # frames are left out at the floor only
        largest = max(own.size(*n, frame=True, most_tokens=fit.most_tokens).tokens for n in frames)
        assert (len(fit.kept) + 1) * largest > budget


def frame(number: int, role="user") -> Image:
    return Image(role=role, media=0, timestamp=number / 2)


ASKED = (Text(role="user", text="what happens?"), Text(role="assistant", text="a lot", trained=True))


def test_a_sample_keeps_its_words_and_pictures_and_gives_up_frames_alone():
    still = Image(media=1)
    parts = (still, *(frame(n) for n in range(40)), *ASKED)
    sample = Sample(source="s", sample_id="a", parts=parts)
    own = replace(QWEN, video_over_budget="fewer")
    fitted = fit_sample(own, sample, [(448, 448)] * 41, 256 * 11)
    assert fitted.kept == (0, *(1 + n for n in range(0, 40, 4)))
    assert fitted.sample.parts == (still, *(frame(n) for n in range(0, 40, 4)), *ASKED)
    assert [size.tokens for size in fitted.sizes] == [256] * 11
    smaller = fit_sample(QWEN, sample, [(448, 448)] * 41, 256 * 21)
    assert smaller.sample == sample
    assert [size.tokens for size in smaller.sizes] == [256] + [121] * 40
    assert smaller.most_tokens == 128
    assert fit_sample(QWEN, sample, [(448, 448)] * 41, None).most_tokens is None


def test_a_live_stream_gives_up_nothing():
    parts = tuple(frame(n, "assistant") for n in range(40))
    sample = Sample(source="s", sample_id="a", parts=(ASKED[0], *parts))
    fitted = fit_sample(QWEN, sample, [(448, 448)] * 40, 256)
    assert (fitted.sample, fitted.most_tokens) == (sample, None)
    assert [size.tokens for size in fitted.sizes] == [256] * 40
