"""``casa caption`` against a running endpoint: what it prints, and the subtitles that it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from casa_core.media.video import VideoFrames
from pipelines.cli.app import app
from tests.support.data.video_cases import video
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, running, settings_with, write_clip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", ["red", "blue"])


def caption(url: str, clip: Path, *arguments: str) -> Result:
    """What the command does."""
    return CliRunner().invoke(app, ["caption", str(clip), *arguments, "--url", url], env={"COLUMNS": "120"})


def test_captions_are_printed_and_written_as_subtitles(url: str, clip: Path, tmp_path: Path):
    result = caption(url, clip, "--subtitles", str(tmp_path / "clip.srt"))
    assert result.exit_code == 0, result.output
    assert result.stdout == "    0.0 s  red 1\n    1.0 s  blue 3\n"
    assert "clip.srt" in result.stderr
    assert (tmp_path / "clip.srt").read_text() == (
        "1\n00:00:00,000 --> 00:00:01,000\nred 1\n\n2\n00:00:01,000 --> 00:00:03,000\nblue 3\n"
    )
    assert caption(url, clip, "--subtitles", str(tmp_path / "clip.VTT")).exit_code == 0
    assert (tmp_path / "clip.VTT").read_text().startswith("WEBVTT")


def test_a_model_that_is_not_served_is_refused_with_those_that_are(url: str, clip: Path):
    assert f"this endpoint serves '{MODEL}'" in " ".join(
        caption(url, clip, "--model", "other").output.split()
    )


def test_the_video_is_written_with_its_captions_in_the_picture(url: str, clip: Path, tmp_path: Path):
    burned = tmp_path / "burned.mp4"
    assert caption(url, clip, "--burn", str(burned)).exit_code == 0
    with VideoFrames(clip) as before, VideoFrames(burned) as after:
        assert after.duration == pytest.approx(before.duration, abs=0.11)
        assert (after.height, after.width) == (before.height, before.width)
        pairs = list(zip(before.at([0.5, 1.5]), after.at([0.5, 1.5]), strict=True))
    for plain, captioned in pairs:
        change = np.abs(plain.astype(int) - captioned.astype(int)).max(axis=2)
        rows = len(change) * 2 // 3
        assert change[:rows].max() < 60, "the upper part is as it was, but for the codec"
        assert change[rows:].max() > 150, "and below there are words"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["burned.mp4", "clip.mp4"]


def with_sound(clip: Path, path: Path) -> Path:
    """The clip with a tone in AAC."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("aac", rate=16_000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                target.mux(packet)
        tone = np.sin(np.arange(32_000) * 0.1, dtype=np.float32)[None] / 4
        for start in range(0, 32_000, 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    return path


def test_the_sound_is_kept(url: str, clip: Path, tmp_path: Path):
    heard = with_sound(clip, tmp_path / "heard.mp4")
    assert caption(url, heard, "--burn", str(tmp_path / "burned.mp4")).exit_code == 0
    with av.open(str(heard)) as before, av.open(str(tmp_path / "burned.mp4")) as after:
        samples = [sum(frame.samples for frame in container.decode(audio=0)) for container in (before, after)]
    assert samples[0] == samples[1] >= 32_000


def test_another_ending_is_refused_before_anything_is_sent(url: str, clip: Path, tmp_path: Path):
    result = caption(url, clip, "--subtitles", str(tmp_path / "clip.txt"))
    assert result.exit_code == 2
    assert "neither in .srt nor in .vtt" in result.output
    assert not (tmp_path / "clip.txt").exists()


def test_half_a_video_is_captioned_up_to_there_and_the_command_fails(url: str, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (100, 32, 64, 3), np.uint8)
    for container in ("mp4", "matroska"):
        whole = video(noise, container=container, index_first=container == "mp4")
        half = tmp_path / "half.mkv"
        half.write_bytes(whole[: len(whole) // 2])
        srt = tmp_path / f"{container}.srt"
        result = caption(url, half, "--subtitles", str(srt), "--json")
        assert result.exit_code == 2
        assert "half.mkv cannot be decoded" in " ".join(result.stderr.split())
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert 5 < len(events) < 16
        assert events[-1]["type"] == "session.ended"
        assert events[-1]["frames"] == len(events) - 1
        assert srt.read_text().startswith("1\n00:00:00,000")
