"""The command line's client: words as they are made, a caption for every frame, and clear errors."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_core.engine.events import Event, StreamMoved
from casa_core.engine.requests import CaptionEvent
from casa_core.errors import ClusterError, ConfigError, MediaError
from casa_core.media.decode import VideoFrames, decode_image
from infra import caption_client
from infra import endpoint_client as client
from tests.support.serve.fakes import FakeEngine, colour_of
from tests.support.serve.proxy import cuttable
from tests.support.serve.server import picture, running, settings_with, write_clip

COLOURS = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with(limits={"queued_frames": 3})) as address:
        yield address


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", COLOURS)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(picture("red"))
    return path


@pytest.fixture
def nowhere() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_an_answer_comes_word_by_word_or_whole(url: str, image: Path):
    assert list(client.answer(url, [client.user_turn("what is this", [image])])) == [
        "red",
        " what",
        " is",
        " this",
    ]
    assert list(client.answer(url, [client.user_turn("what is this", [image])], stream=False)) == [
        "red what is this"
    ]


def test_a_conversation_goes_on_with_several_pictures(url: str, image: Path, tmp_path: Path):
    other = tmp_path / "blue.png"
    other.write_bytes(picture("blue"))
    messages = [client.user_turn("what changed", [image, other])]
    said = "".join(client.answer(url, messages))
    assert said == "red blue what changed"
    messages += [{"role": "assistant", "content": said}, client.user_turn("and now")]
    assert "".join(client.answer(url, messages)) == "red blue and now"


@pytest.mark.parametrize("code", [0x0B, 0x1C, 0x85, 0x2028, 0x2029])
@pytest.mark.parametrize("stream", [True, False])
def test_words_may_hold_characters_that_end_lines_elsewhere(url: str, code: int, stream: bool):
    engine = FakeEngine()
    word = f"a{chr(code)}b"
    engine.words_of = lambda text: [word]
    with running(engine, settings_with()) as address:
        assert "".join(client.answer(address, [client.user_turn("x")], stream=stream)) == word


def test_every_sampled_frame_is_captioned_in_order_however_long_the_video(url: str, clip: Path):
    events = list(caption_client.caption(url, clip, query="now"))
    assert [event["timestamp"] for event in events[:-1]] == [i / 2 for i in range(8)]
    spoken = [(event["timestamp"], event["text"]) for event in events[:-1] if event["text"]]
    assert spoken == [(float(i), f"now {colour} {2 * i + 1}") for i, colour in enumerate(COLOURS)]
    assert events[-1]["type"] == "session.ended"
    assert (events[-1]["frames"], events[-1]["dropped"]) == (8, 0)


class Moving(FakeEngine):
    """A fake whose streams move before their third frame is captioned."""

    def step(self) -> list[Event]:
        events = super().step()
        for at, event in enumerate(events):
            if isinstance(event.outcome, CaptionEvent) and event.outcome.timestamp == 1.0:
                events.insert(at, Event(event.sequence, StreamMoved(exact=True)))
                break
        return events


def test_a_session_that_moves_answers_every_frame_all_the_same(clip: Path):
    with running(Moving(), settings_with()) as url:
        events = list(caption_client.caption(url, clip))
    kinds = [event["type"] for event in events]
    assert kinds == [*["caption"] * 2, "session.moved", *["caption"] * 6, "session.ended"]
    assert events[-1]["frames"] == 8


def test_in_real_time_captions_come_at_the_pace_of_the_video(url: str, tmp_path: Path):
    clip = write_clip(tmp_path / "short.mp4", COLOURS[:2])
    began = time.monotonic()
    arrivals = [
        time.monotonic() - began
        for event in caption_client.caption(url, clip, realtime=True)
        if "text" in event
    ]
    assert len(arrivals) == 4
    assert all(i / 2 <= arrival + 0.05 for i, arrival in enumerate(arrivals)), arrivals
    assert arrivals[-1] < 1.5 + 1.0


def test_frames_are_those_the_training_reader_takes(clip: Path):
    sampled = list(client.encoded_frames(clip, 4.0))
    reference = VideoFrames(clip).at([timestamp for timestamp, _ in sampled])
    assert [timestamp for timestamp, _ in sampled] == [i / 4 for i in range(16)]
    for (_, jpeg), pixels in zip(sampled, reference, strict=True):
        assert colour_of(jpeg) == colour_of(pixels)
        assert decode_image(jpeg).shape == pixels.shape


def test_nobody_there_is_said_in_one_sentence(nowhere: str, image: Path, clip: Path):
    with pytest.raises(ClusterError, match=f"No endpoint answers at {nowhere}"):
        list(client.answer(nowhere, [client.user_turn("hello", [image])]))
    with pytest.raises(ClusterError, match=f"No endpoint answers at {nowhere}"):
        list(caption_client.caption(nowhere, clip))


def test_refusals_carry_the_endpoints_reason(url: str, image: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="model_not_found"):
        list(client.answer(url, [client.user_turn("hello", [image])], model="other"))
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(ConfigError, match="invalid_image"):
        list(client.answer(url, [client.user_turn("hello", [text])]))
    with pytest.raises(ClusterError, match="internal_error"):
        list(client.answer(url, [client.user_turn("explode", [image])]))


def test_a_session_that_the_endpoint_ends_raises_its_reason(url: str, clip: Path):
    with pytest.raises(ClusterError, match="internal_error"):
        list(caption_client.caption(url, clip, query="explode"))


def test_unreadable_files_are_reported_before_anything_is_sent(nowhere: str, url: str, tmp_path: Path):
    with pytest.raises(MediaError, match="does not exist"):
        list(caption_client.caption(nowhere, tmp_path / "missing.mp4"))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match="cannot be decoded"):
        list(caption_client.caption(nowhere, tmp_path / "empty.mp4"))
    with pytest.raises(MediaError, match="cannot be read"):
        client.user_turn("hello", [tmp_path / "missing.png"])


def test_a_connection_that_is_lost_is_resumed_and_no_frame_is_missed_or_captioned_twice(clip: Path):
    settings = settings_with(limits={"queued_frames": 3})
    with running(FakeEngine(delay_s=0.05), settings) as url, cuttable(url) as proxy:
        events = []
        for event in caption_client.caption(proxy.url, clip, query="now"):
            events.append(event)
            if len(events) in (2, 3, 6):
                proxy.cut()
    said = [(event["timestamp"], event["text"]) for event in events[:-1]]
    assert said == [
        (i / 2, f"now {COLOURS[i // 2]} {i + 1}" if i % 2 == 0 else "") for i in range(2 * len(COLOURS))
    ]
    assert (events[-1]["type"], events[-1]["received"]) == ("session.ended", 8)


def test_a_session_that_cannot_be_resumed_broke_off(clip: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caption_client, "RETRY_S", (0.1, 0.1))
    with running(FakeEngine(), settings_with()) as url, cuttable(url) as proxy:
        events = caption_client.caption(proxy.url, clip)
        next(events)
        proxy.reachable = False
        proxy.cut()
        with pytest.raises(ClusterError, match="broke off"):
            list(events)
