"""Real videos' oddities: readers, clips, training's decoder and the caption client see the same frames."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from casa_core.errors import MediaError
from casa_core.media.decode import decode_image, decode_pictures
from casa_core.media.video import VideoFrames
from casa_core.types import Image
from infra.endpoint_client import encoded_frames
from pipelines.data.clean.records import clean_record
from pipelines.data.read import Record
from pipelines.data.read.corpora import video as video_module
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from pipelines.data.read.corpora.llava_video import LlavaVideoReader
from pipelines.data.store.quarantine import Rejected
from pipelines.data.store.rows import CleanSample
from tests.support.data.corpus import live_record, read_all, write_jsonl
from tests.support.data.layouts import noisy_video, video_item, write_array
from tests.support.data.video_cases import BLUE, MATRICES, RED, greys, halves, solid, turned, video

Shown = list[tuple[float, np.ndarray]]


def trained(sample: CleanSample) -> Shown:
    """The frames of a cleaned sample and their times, as the loader decodes them."""
    times = [part.timestamp for part in sample.sample.parts if isinstance(part, Image)]
    (media,) = sample.media
    data = media.data or b""
    pixels = list(decode_pictures([(data, time) for time in times]))
    assert all(frame.shape == (media.height, media.width, 3) for frame in pixels)
    return list(zip([time or 0.0 for time in times], pixels, strict=True))


def cleaned(record: Record | Rejected) -> CleanSample:
    assert isinstance(record, Record), record
    clean = clean_record(record)
    assert isinstance(clean, CleanSample), clean
    return clean


def asked_about(data: bytes, folder: Path) -> Shown:
    """A video's frames as LLaVA-Video's reader takes them and training decodes them."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "a.mp4").write_bytes(data)
    write_array(folder / "config" / "a_cap.json", [video_item("a.mp4")])
    (record,) = read_all(LlavaVideoReader, folder)
    return trained(cleaned(record))


def commented(data: bytes, folder: Path, start: float, end: float) -> tuple[Shown, int]:
    """A clip's frames by Live-WhisperX's reader and training; and the clip's size in bytes."""
    folder.mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(data)
    write_jsonl(folder / "train.jsonl", [live_record(start=start, end=end, words=[(start, start, "so")])])
    (record,) = read_all(LiveWhisperXReader, folder)
    sample = cleaned(record)
    return trained(sample), len(sample.media[0].data or b"")


def streamed(data: bytes, folder: Path) -> Iterator[tuple[float, np.ndarray]]:
    """What ``casa caption`` sends, as the endpoint decodes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sent.mp4").write_bytes(data)
    for time, jpeg in encoded_frames(folder / "sent.mp4", 2.0):
        yield time, decode_image(jpeg)


def grey_numbers(shown: Iterable[tuple[float, np.ndarray]]) -> list[int]:
    """Which of ``greys`` each frame is."""
    return [round((float(frame.mean()) - 19.5) / 2) for _, frame in shown]  # a level may be lost


@pytest.fixture(autouse=True)
def cut_small_videos_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "CUT_FROM_BYTES", 0)


@pytest.mark.parametrize("name", MATRICES)
def test_a_turned_video_is_upright_for_readers_clips_and_the_caption_client(tmp_path, name):
    plain = video([halves()] * 100, g="10")
    upright = {
        "as it is": lambda a: a,
        "a quarter to the right": lambda a: np.rot90(a, -1),
        "half": lambda a: np.rot90(a, 2),
        "a quarter to the left": lambda a: np.rot90(a, 1),
        "mirrored": np.fliplr,
        "upside down": np.flipud,
        "swapped": lambda a: a.swapaxes(0, 1),
        "swapped and turned": lambda a: np.rot90(a, 2).swapaxes(0, 1),
    }[name](halves()).astype(int)
    data = turned(plain, name)
    clip, size = commented(data, tmp_path / "live", 5.0, 7.0)
    assert size < len(data) / 2, "the clip was cut out"
    for shown in (asked_about(data, tmp_path / "asked"), clip, streamed(data, tmp_path)):
        for _, frame in shown:
            assert frame.shape == upright.shape
            assert np.abs(frame - upright).mean() < 6  # chroma of half resolution blurs the borders


def test_pixels_that_are_not_square_are_made_so():
    with VideoFrames(video([halves()] * 3, aspect=Fraction(3, 2))) as wide:
        assert (wide.height, wide.width) == (32, 96)
        (frame,) = wide.at([0.0])
    assert frame.shape == (32, 96, 3)
    assert np.abs(frame[20, 40].astype(int) - RED).max() <= 4
    assert np.abs(frame[20, 60].astype(int) - BLUE).max() <= 4


@pytest.mark.parametrize(
    ("container", "codec", "sound"), [("webm", "libvpx-vp9", 0), ("matroska", "libx264", 12.0)]
)
def test_a_recording_without_a_duration_has_the_length_of_its_packets(tmp_path, container, codec, sound):
    pictures = greys(48)
    data = video(pictures, container=container, codec=codec, fps=4, sound_seconds=sound, piped=True)
    expected = list(range(0, 48, 2))
    assert grey_numbers(asked_about(data, tmp_path / "asked")) == expected
    assert grey_numbers(streamed(data, tmp_path)) == expected


def test_a_recording_without_a_duration_keeps_to_the_longest_video(tmp_path):
    (tmp_path / "config").mkdir()
    long = video(greys(100) * 2, container="matroska", fps=1, piped=True)
    (tmp_path / "config" / "a.mp4").write_bytes(long)
    write_array(tmp_path / "config" / "a_cap.json", [video_item("a.mp4")])
    (record,) = read_all(LlavaVideoReader, tmp_path)
    assert isinstance(record, Rejected)
    assert (record.reason, record.detail) == ("over_duration", "200.0 s; at most 180 s are used")


@pytest.mark.parametrize(
    ("container", "start"),
    [("mpegts", 1.4), ("mpegts", 3600.0), ("mp4", 5.0), ("matroska", 5.0), ("flv", 1.0), ("mp4", 0.0)],
)
def test_time_0_is_the_first_picture_wherever_the_files_clock_begins(tmp_path, container, start):
    data = video(greys(100), container=container, start=start, g="10")
    expected = [5 * number for number in range(20)]
    assert grey_numbers(asked_about(data, tmp_path / "asked")) == expected
    assert grey_numbers(streamed(data, tmp_path)) == expected
    clip, size = commented(data, tmp_path / "live", 5.0, 7.0)
    assert [time for time, _ in clip] == [5.0, 5.5, 6.0, 6.5]
    assert grey_numbers(clip) == [50, 55, 60, 65]
    assert (size < len(data) / 2) == (container == "mp4"), "others are kept whole"


@pytest.mark.parametrize(
    "starts",
    [(1.4, 1.4), (3600.0, 2.0), (1.4, 3600.0), (1.4, 9.4), (1.4, 6.9), (50.0, 10.0, 30.0)],
    ids=["one clock twice", "far back", "far forward", "a gap of 4 s", "of 1.5 s", "three parts"],
)
def test_joined_files_go_on_where_the_part_before_ended(tmp_path, starts):
    count = 120 // len(starts)  # frames of a part; 12 s in all
    pictures = greys(110) + greys(110)[100:]
    data = b"".join(
        video(pictures[count * number :][:count], container="mpegts", start=start, g="10")
        for number, start in enumerate(starts)
    )
    expected = [5 * number % 110 + 100 * (number > 21) for number in range(24)]
    assert grey_numbers(asked_about(data, tmp_path / "asked")) == expected
    assert grey_numbers(streamed(data, tmp_path)) == expected
    clip, _ = commented(data, tmp_path / "live", 3.0, 5.0)
    assert grey_numbers(clip) == [30, 35, 40, 45]
    with VideoFrames(data) as opened:
        assert opened.duration == pytest.approx(12.0, abs=0.02)
        times = [6.0, 1.0, 4.0, 3.9, 7.9, 0.0]
        assert grey_numbers((time, frame) for time, frame in zip(times, opened.at(times), strict=True)) == [
            *(60, 10, 40, 39, 79, 0)
        ]


def test_joined_program_streams_go_on_too():
    parts = [
        video(greys(100)[50 * number :][:50], container="mpeg", codec="mpeg2video", start=start)
        for number, start in enumerate((1.4, 500.0))
    ]
    with VideoFrames(b"".join(parts)) as opened:
        assert opened.duration == pytest.approx(10.0, abs=0.02)
        shown = grey_numbers((0.0, frame) for frame in opened.at([number / 2 for number in range(20)]))
    assert np.abs(np.subtract(shown, range(0, 100, 5))).max() <= 1, "that codec is not exact"


def test_a_slow_transport_stream_is_not_taken_for_joined_files():
    for fps in (1, 2):
        with VideoFrames(video(greys(20), container="mpegts", fps=fps)) as opened:
            shown = grey_numbers((0.0, frame) for frame in opened.at([number / fps for number in range(20)]))
            assert shown == list(range(20))
            assert opened.duration == pytest.approx(20 / fps, abs=0.02)


def test_a_last_frame_is_shown_for_as_long_as_the_file_holds_it(tmp_path):
    data = video(greys(60), last_seconds=5.0, bf="0")
    expected = [min(5 * number, 59) for number in range(22)]  # 5.9 s and five more
    assert grey_numbers(asked_about(data, tmp_path / "asked")) == expected
    assert grey_numbers(streamed(data, tmp_path)) == expected


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_sound_that_outlasts_the_picture_adds_no_frames(tmp_path, container):
    data = video(greys(60), container=container, sound_seconds=9.0)
    assert grey_numbers(streamed(data, tmp_path)) == [5 * number for number in range(12)]
    shown = asked_about(data, tmp_path / "asked")
    assert [time for time, _ in shown] == pytest.approx([0.3 * number for number in range(20)])
    assert grey_numbers(shown) == [3 * number for number in range(20)]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_file_cut_off_before_the_end_it_states_is_truncated_for_all(tmp_path, container):
    noise = np.random.default_rng(0).integers(0, 255, (100, 32, 64, 3), np.uint8)
    whole = video(noise, container=container, index_first=container == "mp4")
    cut = whole[: len(whole) // 2]
    sent = []
    with pytest.raises(MediaError) as caught:
        sent.extend(streamed(cut, tmp_path))
    assert caught.value.reason == "truncated_video"
    assert 5 < len(sent) < 15, "what there is, is sent"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "a.mp4").write_bytes(cut)
    write_array(tmp_path / "config" / "a_cap.json", [video_item("a.mp4")])
    (record,) = read_all(LlavaVideoReader, tmp_path)
    assert isinstance(record, Record)
    found = clean_record(record)
    assert isinstance(found, Rejected)
    assert found.reason == "truncated_video"


SOLIDS = {
    "BT.709": {},
    "BT.709, full range": {"full": True},
    "BT.601": {"matrix": "bt601"},
    "BT.601, full range": {"matrix": "bt601", "full": True},
    "10 bits": {"bits": 10},
    "10 bits, full range": {"bits": 10, "full": True},
    "VP9": {"container": "webm", "codec": "libvpx-vp9"},
    "AV1": {"container": "webm", "codec": "libsvtav1"},
    "unstated, 718 lines": {"matrix": "bt601", "stated": False, "size": (718, 64)},
    "unstated, 720 lines": {"matrix": "bt709", "stated": False, "size": (720, 64)},
    "unstated, VP9": {
        "matrix": "bt601",
        "stated": False,
        "size": (720, 64),
        "container": "webm",
        "codec": "libvpx-vp9",
    },
}


@pytest.mark.parametrize("name", SOLIDS)
def test_a_colour_comes_back_from_every_encoding_of_it(tmp_path, name):
    data = solid(RED, **SOLIDS[name])
    ((_, sent), *_) = streamed(data, tmp_path)
    for frame in (next(decode_pictures([(data, 0.0)])), sent):
        assert np.abs(frame.reshape(-1, 3).astype(int) - RED).max() <= 4


def test_a_long_videos_frames_are_never_in_memory_together():
    large = video((np.zeros((720, 1280, 3), np.uint8) for _ in range(60)), fps=2, preset="ultrafast")
    times = [n / 12 for n in range(360)]
    tracemalloc.start()
    try:
        count = sum(frame.shape == (720, 1280, 3) for frame in decode_pictures([(large, t) for t in times]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 360
    assert peak < 4 * 720 * 1280 * 3


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_video_of_few_frames_shows_them_all(count):
    with VideoFrames(noisy_video(frames=count)) as frames:
        shown = list(frames.at([number / 30 for number in range(count)]))
    assert len({frame.tobytes() for frame in shown}) == count


@pytest.mark.parametrize("last", [1, 2, 3])
def test_frames_of_a_short_last_group_are_found_as_in_one_pass(last):
    data, times = noisy_video(frames=240 + last), [number / 30 for number in range(240 + last)]
    with VideoFrames(data) as frames:
        whole = [frame.tobytes() for frame in frames.at(times)]
    with VideoFrames(data) as frames:
        assert [frame.tobytes() for frame in frames.at(times[240:])] == whole[240:]


def test_a_video_may_be_asked_back_and_forth():
    data = noisy_video(frames=240)
    times = [3.0, 1.0, 7.5, 7.5, 0.0, 4.0]
    with VideoFrames(data) as frames:
        single = [next(frames.at([time])) for time in times]
        together = list(frames.at(times))
    assert all(np.array_equal(*pair) for pair in zip(single, together, strict=True))
