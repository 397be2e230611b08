"""Frames of a video: the one on screen at a time, from any file that can be decoded, or a named refusal."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from casa_core.errors import MediaError
from casa_core.media import decode
from casa_core.media.decode import decode_image, decode_pictures
from casa_core.media.video import VideoFrames
from tests.support.data.media import counting_video, encode, grey_level, reason_if_any, reason_of, scene


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 frames at 10 fps, each with its own grey."""
    return counting_video(tmp_path_factory.mktemp("video") / "counting.mp4")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """12 seconds at 4 fps: long enough for seeking."""
    return counting_video(tmp_path_factory.mktemp("video") / "long.mp4", frames=46, fps=4)


def shown_at(data, timestamps):
    with VideoFrames(data) as frames:
        return [float(frame.mean()) for frame in frames.at(timestamps)]


def test_a_frame_stays_on_screen_until_the_next_begins(video):
    times = [0.0, 0.05, 0.1, 0.1999, 0.2, 1.5, 3.9, 3.95]
    numbers = [0, 0, 1, 1, 2, 15, 39, 39]
    expected = [grey_level(number) for number in numbers]
    np.testing.assert_allclose(shown_at(video, times), expected, atol=1.6)


def test_times_may_come_in_any_order_and_repeat(video):
    times = [2.0, 0.5, 2.0, 3.0, 0.0]
    np.testing.assert_allclose(shown_at(video, times), [grey_level(int(t * 10)) for t in times], atol=1.6)
    assert shown_at(video, []) == []


def test_one_video_can_be_asked_again_and_again(video):
    with VideoFrames(video) as frames:
        assert (frames.height, frames.width) == (64, 64)
        assert frames.duration == pytest.approx(4.0)
        for time in (3.0, 1.0, 3.9, 0.0):
            assert next(frames.at([time])).mean() == pytest.approx(grey_level(int(time * 10)), abs=1.6)


def test_seeking_finds_the_frames_that_decoding_from_the_start_finds(long_video):
    times = [4.0, 4.25, 5.1, 7.9, 11.25]
    expected = [grey_level(int(time * 4)) for time in times]
    np.testing.assert_allclose(shown_at(long_video, times), expected, atol=1.6)
    for time, grey in zip(times, expected, strict=True):
        assert shown_at(long_video, [time])[0] == pytest.approx(grey, abs=1.6)


def test_a_file_by_its_path_gives_the_same_frames(video, tmp_path):
    path = tmp_path / "again.mp4"
    path.write_bytes(video)
    assert shown_at(path, [0.3, 2.2]) == shown_at(video, [0.3, 2.2])


def test_frames_past_the_end_are_refused_but_for_a_little(video):
    assert shown_at(video, [4.3])[0] == pytest.approx(grey_level(39), abs=1.6)
    assert reason_of(shown_at, video, [0.0, 5.0]) == "truncated_video"


def test_unusable_videos_are_named_as_such(video, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert reason_of(VideoFrames, b"") == "empty_file"
    assert reason_of(VideoFrames, tmp_path / "empty.mp4") == "empty_file"
    assert reason_of(VideoFrames, b"not a video at all" * 100) == "not_a_video"
    assert reason_of(shown_at, video[: len(video) * 2 // 3], [0.0, 3.9]) == "truncated_video"


def test_a_playlist_that_names_other_files_is_not_followed(tmp_path):
    (tmp_path / "secret.ts").write_bytes(b"\x47" * 188)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n"
    assert reason_of(VideoFrames, playlist.encode()) == "not_a_video"


def test_flipped_bytes_of_a_video_never_raise_anything_else(video):
    rng = random.Random(0)
    for _ in range(150):
        data = bytearray(video)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(min(len(data), rng.choice((2500, 100_000))))] = rng.randrange(256)
        reason = reason_if_any(shown_at, bytes(data), [0.0, 2.0, 3.9])
        assert reason in (None, "not_a_video", "truncated_video")


def test_pictures_and_frames_come_in_order_and_a_video_is_opened_once(video, long_video, monkeypatch):
    opened = []

    class Counted(VideoFrames):
        def __init__(self, data):
            opened.append(data)
            super().__init__(data)

    monkeypatch.setattr(decode, "VideoFrames", Counted)
    still = encode(Image.fromarray(scene()), "PNG")
    times = [(video, 2.0), (long_video, 5.25), (still, None), (video, 0.5), (long_video, 0.0)]
    pixels = list(decode_pictures(times))
    greys = [grey_level(20), grey_level(21), grey_level(5), grey_level(0)]
    np.testing.assert_allclose([frame.mean() for frame in pixels[:2] + pixels[3:]], greys, atol=1.6)
    np.testing.assert_array_equal(pixels[2], decode_image(still))
    assert opened == [video, long_video]


def test_a_broken_picture_raises_in_its_turn():
    decoded = decode_pictures([(encode(Image.fromarray(scene()), "PNG"), None), (b"junk", 1.0)])
    assert next(decoded).shape == scene().shape
    with pytest.raises(MediaError):
        next(decoded)


def test_a_title_in_any_encoding_does_not_keep_a_video_from_being_read(tmp_path: Path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        container.metadata["title"] = "XXXXtitle"
        stream: Any = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(5):
            grey = np.full((64, 64, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    written = path.read_bytes()
    assert b"XXXXtitle" in written
    path.write_bytes(written.replace(b"XXXX", b"\xe4\xff\xfe\x80"))  # no UTF-8
    with VideoFrames(path) as frames:
        assert len(list(frames.at([0.0, 0.5]))) == 2
