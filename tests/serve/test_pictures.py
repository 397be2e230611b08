"""Pictures of chat requests: bounded by their headers, decoded once, refused by their place."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from PIL import Image as Picture

from casa_core.engine.engine import Engine
from casa_core.errors import ConfigError, MediaError
from casa_core.media import decode
from serve.api.errors import invalid_image, one_line
from serve.loading import engine_settings
from tests.support.data.media import encode, png_claiming, scene
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, image_part, picture, question, running, settings_with

CHAT = "/v1/chat/completions"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000", "SGI", "PCX")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a real engine."""
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), ["what is it"])
    settings = settings_with(max_new_tokens=4)
    engine = Engine.from_pretrained(folder, device="cpu", settings=engine_settings(settings.limits))
    with running(engine, settings) as address:
        yield address


@contextmanager
def decoded() -> Iterator[list[int]]:
    """The sizes of the files that are decoded meanwhile, bytes."""
    files: list[int] = []
    original = decode._loaded

    def loaded(data: bytes, *how: Any) -> Any:
        files.append(len(data))
        return original(data, *how)

    with patch.object(decode, "_loaded", loaded):
        yield files


def ask(url: str, messages: list[dict[str, Any]], **options: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": messages, **options}
    return httpx.post(f"{url}{CHAT}", json=body, timeout=60)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("n", [1, 4])
def test_a_picture_is_decoded_once_however_many_answers_are_wanted(url: str, n: int, stream: bool):
    pictures = [encode(Picture.fromarray(scene(900, 800 + number)), "PNG") for number in range(2)]
    with decoded() as files:
        answer = ask(url, question("what is it", *pictures), n=n, stream=stream)
    assert answer.status_code == 200, answer.text
    assert files == [len(data) for data in pictures]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_picture_that_turns_out_broken_is_refused_by_its_place(url: str, n: int, stream: bool):
    half = encode(Picture.fromarray(scene(200, 200)), "PNG")
    messages = [
        {"role": "system", "content": "look"},
        *question("what is it", picture()),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "it"}, image_part(half[: len(half) // 2])]},
    ]
    answer = ask(url, messages, n=n, stream=stream)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_image", "messages[3].content[1].image_url.url")
    assert "truncated_image" in error["message"]
    assert ask(url, question("what is it", picture())).status_code == 200


def test_a_picture_that_is_too_long_for_the_model_is_refused_by_its_place(url: str):
    thin = encode(Picture.new("RGB", (2000, 2)), "PNG")
    error = ask(url, question("what is it", picture(), thin)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_image", "messages[0].content[1].image_url.url")
    assert "extreme_aspect_ratio" in error["message"]


def test_sixteen_pictures_of_forty_megapixels_are_refused_by_their_headers():
    with running(FakeEngine(), settings_with()) as address, decoded() as files:
        flat = png_claiming(7300, 5480)
        started = time.monotonic()
        answer = ask(address, question("what is it", *[flat] * 16))
        assert time.monotonic() - started < 2
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("too_many_pixels", "messages[0].content[3].image_url.url")
    assert "134217728" in error["message"]
    assert not files


def test_the_pixels_of_all_turns_count_and_as_many_as_the_limit_are_answered():
    limits = {"request_pixels": 3 * 32 * 32}
    with running(FakeEngine(), settings_with(limits=limits)) as address:
        turns = [*question("a", picture("red")), *question("b", *[picture("blue")] * 2)]
        assert ask(address, turns).status_code == 200
        refused = ask(address, [*turns, *question("c", picture())]).json()["error"]
        assert (refused["code"], refused["param"]) == (
            "too_many_pixels",
            "messages[2].content[0].image_url.url",
        )


def broken_files(count: int) -> Iterator[bytes]:
    """Files of every format, cut off or with wrong bytes."""
    rng = random.Random(0)
    pixels = Picture.fromarray(scene(60, 50))
    whole = [encode(pixels, kind) for kind in FORMATS]
    for number in range(count):
        data = bytearray(whole[number % len(whole)])
        if rng.random() < 0.6:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randint(0, 5)):
            if data:
                data[rng.randrange(min(len(data), rng.choice((30, 10_000))))] = rng.randrange(256)
        yield bytes(data)


@pytest.mark.filterwarnings("ignore")
def test_what_is_said_of_broken_pictures_holds_no_address_and_no_path():
    said = set()
    for data in broken_files(1500):
        for read in (decode.decode_image, decode.image_header):
            try:
                read(data, max_pixels=1_000_000)
            except MediaError as error:
                said.add(invalid_image(error).message)
    assert len(said) > 100
    private = re.compile(r"0x[0-9a-f]{4}| object at |<[a-z_.]+|/\w+/\w+|\.py\b|Traceback")
    assert not [message for message in said if private.search(message)]


def test_an_engines_error_is_told_without_addresses_and_paths():
    error = ConfigError(
        "The file /home/me/run 1/model.bin cannot be read.",
        "OSError: <_io.BufferedReader name='/x/y' at 0x7f00aa> and/or file:///var/lib/a.b is gone, 3/4 done.",
        "Ask https://example.org/docs/errors.",
    )
    told = one_line(error)
    assert "/home" not in told
    assert "0x" not in told
    assert "/var" not in told
    assert "and/or a file is gone, 3/4 done. Ask https://example.org/docs/errors." in told


def test_an_error_keeps_its_image_between_processes():
    import pickle

    error = MediaError("truncated_image", "what", "why", "remedy")
    error.image = 3
    again = pickle.loads(pickle.dumps(error))
    assert (again.image, again.reason, again.what, str(again)) == (3, "truncated_image", "what", str(error))


def test_a_video_that_cannot_be_opened_is_told_without_its_files_name(tmp_path: Path):
    from casa_core.media.video import VideoFrames

    (tmp_path / "upload-1.mp4").write_bytes(np.random.default_rng(0).bytes(2000))
    for source in (tmp_path / "upload-1.mp4", b"no video"):
        with pytest.raises(MediaError) as caught, VideoFrames(source):
            pass
        assert "upload-1" not in str(caught.value)
        assert "none" not in str(caught.value)
