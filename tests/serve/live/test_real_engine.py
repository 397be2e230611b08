"""Live sessions on the engine itself: a stream goes on whatever frames come, and its usage is counted."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image as Picture

from serve.loading import load_engine
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.live_client import assert_fatal, live, push, receive, send, start
from tests.support.serve.server import binary_frame, running, settings_with

CONTEXT = 128


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), ["red square, blue circle"], context=CONTEXT)
    settings = settings_with(model_folder=folder, max_tokens_per_frame=4)
    with running(load_engine(settings), settings) as address:
        yield address


def shape(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Picture.new("RGB", (width, height), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 4001)], ids=str)
def test_a_frame_of_any_shape_is_captioned_or_refused_and_the_session_goes_on(
    url: str, size: tuple[int, int]
):
    with live(url) as socket:
        start(socket)
        assert push(socket, 0.0, "red")["type"] == "caption"
        socket.send(binary_frame(0.5, shape(*size)))
        event = receive(socket)
        assert event["type"] in ("caption", "error")
        assert event["timestamp"] == 0.5
        if event["type"] == "error":
            assert (event["fatal"], event["error"]["code"]) == (False, "invalid_image")
        assert push(socket, 1.0, "red")["type"] == "caption"


def test_a_query_that_the_model_has_no_room_for_is_refused_at_the_start(url: str):
    with live(url) as socket:
        send(socket, {"type": "session.start", "query": "red square, " * 200})
        assert_fatal(socket, "invalid_request", 1008)


def test_a_session_goes_on_for_longer_than_the_models_context(url: str):
    with live(url) as socket:
        start(socket)
        for number in range(CONTEXT):
            event = push(socket, number, "red" if number % 2 else "blue")
            assert event["type"] == "caption", event
            assert event["text_tokens"] <= CONTEXT


def test_what_a_session_has_read_and_generated_is_counted(url: str):
    with live(url) as socket:
        start(socket, query="red square")
        first = push(socket, 0.0, "red")
        send(socket, {"type": "session.usage"})
        one = receive(socket)
        assert one["image_tokens"] > 0
        assert one["prompt_tokens"] + max(0, first["tokens"] - first["truncated"]) == one["text_tokens"]
        push(socket, 1.0, "blue")
        send(socket, {"type": "session.usage"})
        two = receive(socket)
        assert two["image_tokens"] == 2 * one["image_tokens"], "frames of one size"
        assert two["prompt_tokens"] - one["prompt_tokens"] < one["prompt_tokens"], "the query is read once"
        send(socket, {"type": "session.prompt", "query": "red square, blue circle"})
        assert receive(socket)["type"] == "answer"
        send(socket, {"type": "session.end"})
        ended = receive(socket)
        assert ended["image_tokens"] == two["image_tokens"], "an answer reads no new frame"
        assert ended["prompt_tokens"] > two["prompt_tokens"]
