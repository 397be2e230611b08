"""Videos: which frames are looked at, clips cut out without loss, and LLaVA-Video's kinds of question."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from casa_core.errors import MediaError
from casa_core.media.decode import VideoFrames
from casa_core.types import Image, Text
from pipelines.data.read import Record
from pipelines.data.read.corpora import video as video_module
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from pipelines.data.read.corpora.llava_video import LlavaVideoReader, kind_of
from pipelines.data.read.corpora.video import clip_times, cut_clip, frame_times
from tests.support.data.corpus import live_record, read_all, reasons, write_jsonl
from tests.support.data.layouts import encode_turns, noisy_video, video_item, write_array
from tests.support.data.media import counting_video

# Times


def test_two_frames_a_second_from_the_start_on_and_none_at_the_end():
    assert frame_times(7.0, 9.0, 2.0) == [7.0, 7.5, 8.0, 8.5]
    assert frame_times(0.0, 1.2, 2.0) == [0.0, 0.5, 1.0]
    assert frame_times(0.3, 0.3 + 0.1 * 3, 10.0) == [0.3, 0.4, 0.5]  # 0.1 * 3 is more than 0.3 by a rounding
    assert frame_times(5.0, 5.01, 2.0) == [5.0]
    assert len(frame_times(0.0, 180.0, 2.0)) == 360


def test_a_clip_below_ten_seconds_has_twenty_frames_evenly_spread():
    assert clip_times(3.0, 5.0, 2.0) == pytest.approx([3.0 + 0.1 * n for n in range(20)])
    assert len(clip_times(0.0, 9.999, 2.0)) == 20
    assert clip_times(0.0, 10.0, 2.0) == [n / 2 for n in range(20)]
    assert len(clip_times(0.0, 10.1, 2.0)) == 21


# Cutting

VIDEOS = {
    "mp4": {"rate": Fraction(30)},
    "mp4 at 29.97": {"rate": Fraction(30000, 1001)},
    "mp4 without B-frames": {"bf": "0"},
    "mp4 with open groups": {"bf": "3", "x264-params": "open-gop=1:keyint=40:b-pyramid=normal"},
    "mp4 of MPEG-4": {"codec": "mpeg4"},
    "webm": {"container": "webm", "codec": "libvpx-vp9", "frames": 120},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_cut_clip_shows_the_same_pixels_at_every_time(monkeypatch, name):
    monkeypatch.setattr(video_module, "CUT_FROM_BYTES", 0)
    data = noisy_video(**{"frames": 240, **VIDEOS[name]})
    whole = VideoFrames(data)
    length = whole.duration
    for start, end in [(0.0, 0.2 * length), (0.31 * length, 0.5 * length), (0.7 * length, length)]:
        clip = cut_clip(data, start, end)
        assert len(clip) < 0.55 * len(data), "it is a cut, not the original"
        times = [start + n / 90 for n in range(int((end - start) * 90))]
        expected, found = whole.at(times), VideoFrames(clip).at(times)
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_where_a_cut_saves_little_or_cannot_be_exact_the_video_stays_whole(monkeypatch):
    data = noisy_video(frames=240)
    assert cut_clip(data, 1.0, 2.0) is data  # small
    monkeypatch.setattr(video_module, "CUT_FROM_BYTES", 0)
    assert cut_clip(data, 0.0, 7.0) is data  # most of it
    transport = noisy_video(frames=240, container="mpegts")
    assert cut_clip(transport, 1.0, 2.0) is transport
    for damaged in (b"", b"no video", data[: len(data) // 2]):
        assert cut_clip(damaged, 1.0, 2.0) is damaged


def test_a_clip_behind_the_videos_end_is_as_wrong_as_before(monkeypatch):
    monkeypatch.setattr(video_module, "CUT_FROM_BYTES", 0)
    data = noisy_video(frames=240)
    with pytest.raises(MediaError) as caught:
        next(VideoFrames(cut_clip(data, 100.0, 101.0)).at([100.0]))
    assert caught.value.reason == "truncated_video"


def test_a_clip_whose_packets_change_on_the_way_stays_whole(monkeypatch):
    monkeypatch.setattr(video_module, "CUT_FROM_BYTES", 0)
    data = noisy_video(frames=240)
    remux = video_module._remux
    monkeypatch.setattr(
        video_module, "_remux", lambda track, packets, begin: remux(track, packets[:-1], begin)
    )
    assert cut_clip(data, 1.0, 2.0) is data


def test_live_clips_keep_their_part_of_the_video_and_its_absolute_times(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "CUT_FROM_BYTES", 0)
    data = noisy_video(frames=300)
    (tmp_path / "clip.mp4").write_bytes(data)
    clips = [
        live_record(start=start, end=start + 1.5, words=[(start, start, "so")]) for start in (0.0, 4.25, 8.5)
    ]
    write_jsonl(tmp_path / "train.jsonl", clips)
    for record in read_all(LiveWhisperXReader, tmp_path):
        times = [part.timestamp for part in record.sample.parts if isinstance(part, Image)]
        assert len(record.media[0].data) < len(data) / 2
        found = VideoFrames(record.media[0].data).at(times)
        assert all(np.array_equal(*pair) for pair in zip(found, VideoFrames(data).at(times), strict=True))


def test_what_a_live_model_is_told_before_the_query_is_the_recipes(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"a video")
    known = {"title": "A walk", "previous": "off we go"}
    write_jsonl(tmp_path / "train.jsonl", [live_record(**known)])

    def asked(**options):
        (record,) = read_all(LiveWhisperXReader, tmp_path, **options)
        return record.sample.parts[0].text

    assert asked() == "comment live"
    assert asked(context=("title", "category", "previous")) == (
        "Title: A walk\nPrevious: off we go\ncomment live"
    )


# LLaVA-Video-178K


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory) -> bytes:
    return counting_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=40, fps=10)


@pytest.fixture
def config(tmp_path, short_clip) -> Path:
    folder = tmp_path / "0_30_s_academic_v0_1"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / "a.mp4").write_bytes(short_clip)
    return folder


def test_all_frames_stand_before_the_first_question(tmp_path, config):
    turns = (("human", "<image>\nWhat happens?"), ("gpt", "It brightens."), ("human", "And then?"))
    item = video_item(turns=(*turns, ("gpt", "It ends.")))
    write_array(config / "a_cap.json", [item])
    (record,) = read_all(LlavaVideoReader, tmp_path)
    assert isinstance(record, Record)
    *frames, first, answer, second, last = record.sample.parts
    assert [frame.timestamp for frame in frames] == pytest.approx([0.2 * n for n in range(20)])
    assert all(frame.role == "user" and frame.media == 0 for frame in frames)
    assert first == Text(role="user", text="What happens?")
    assert answer == Text(role="assistant", text="It brightens.", trained=True)
    assert (second.text, last.text, last.trained) == ("And then?", "It ends.", True)
    assert record.sample.sample_id == "v0@0_30_s_academic_v0_1/a_cap/0"
    assert record.meta == {
        **{"subset": "0_30_s_academic_v0_1", "kind": "caption", "video": "clips/a.mp4"},
        **{"duration": 4.0, "fps": 2.0, "id": "v0", "data_source": "0_30_s"},
    }


def test_from_ten_seconds_on_two_frames_a_second(tmp_path, config):
    counting_video(config / "clips" / "b.mp4", frames=45, fps=4)
    write_array(config / "a_oe.json", [video_item("clips/b.mp4")])
    (record,) = read_all(LlavaVideoReader, tmp_path)
    times = [part.timestamp for part in record.sample.parts if isinstance(part, Image)]
    assert times == [n / 2 for n in range(23)]


def test_the_file_name_says_what_is_asked_and_the_recipe_which_to_read(tmp_path, config):
    names = {
        "0_30_s_academic_v0_1_cap_processed.json": "caption",
        "0_30_s_academic_oe_v0_1_qa_processed.json": "open_ended",
        "0_30_s_academic_mc_v0_1_qa_processed.json": "multiple_choice",
        "dataset_info.json": None,
    }
    for name, kind in names.items():
        assert kind_of(f"0_30_s_academic_v0_1/{name}") == kind
        write_array(config / name, [video_item()])
    kinds = lambda **options: [r.meta["kind"] for r in read_all(LlavaVideoReader, tmp_path, **options)]  # noqa: E731
    assert kinds() == ["multiple_choice", "open_ended", "caption"]
    assert kinds(kinds=("caption",)) == ["caption"]
    assert kinds(exclude_subsets=("0_30*",)) == []


def test_a_path_may_start_at_the_root_and_a_video_above_the_maximum_is_set_aside(tmp_path, config):
    rooted = video_item("0_30_s_academic_v0_1/clips/a.mp4")
    write_array(config / "a_mc.json", [rooted, video_item()])
    assert reasons(read_all(LlavaVideoReader, tmp_path)) == [None, None]
    assert reasons(read_all(LlavaVideoReader, tmp_path, max_seconds=3.5)) == [None, None]  # within a second
    rejected, _ = read_all(LlavaVideoReader, tmp_path, max_seconds=2.5)
    assert (rejected.reason, rejected.detail) == ("over_duration", "4.0 s; at most 2.5 s are used")


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("no object", "bad_record"),
        (video_item(conversations=None), "missing_text"),
        (video_item(turns=(("human", "<image><image>?"), ("gpt", "no"))), "missing_image"),
        (video_item(video=None), "bad_record"),
        (video_item("../../a.mp4"), "bad_path"),
        (video_item("clips/gone.mp4"), "missing_video"),
        (video_item("clips"), "missing_video"),
        (video_item("clips/" + "x" * 300), "missing_video"),
        (video_item("clips/text.mp4"), "not_a_video"),
        (video_item("clips/empty.mp4"), "empty_file"),
        (video_item(conversations=encode_turns([("human", "?"), ("gpt", "\ud83d")])), "bad_encoding"),
    ],
)
def test_an_item_that_cannot_be_used_is_rejected_and_its_neighbours_are_not(tmp_path, config, item, reason):
    (config / "clips" / "text.mp4").write_bytes(b"nothing like a video")
    (config / "clips" / "empty.mp4").write_bytes(b"")
    write_array(config / "a_cap.json", [video_item(), item, video_item()])
    assert reasons(read_all(LlavaVideoReader, tmp_path)) == [None, reason, None]
