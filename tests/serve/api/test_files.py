"""Pictures are uploaded once and named by their ids, by OpenAI's client and by curl."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, picture, running, settings_with

FILES = "/v1/files"
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = {"image_pixels": 10_000, "body_bytes": 100_000, "stored_files_bytes": 50_000}
    with running(FakeEngine(), settings_with(limits=limits)) as address:
        yield address


def ask(url: str, *names: str) -> httpx.Response:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": name}} for name in names]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "ok"}]}]
    return httpx.post(f"{url}/v1/chat/completions", json={"model": MODEL, "messages": messages})


def upload(url: str, data: bytes, headers: dict[str, str] = PNG) -> httpx.Response:
    return httpx.post(f"{url}{FILES}", content=data, headers=headers)


def refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    return error["message"]


def test_the_openai_client_uploads_asks_looks_and_deletes(url: str):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    file = client.files.create(file=("a red one.png", picture("red")), purpose="vision")
    assert (file.object, file.filename, file.bytes) == ("file", "a red one.png", len(picture("red")))
    assert 590 < file.expires_at - file.created_at < 610
    for _ in range(2):
        assert ask(url, file.id).json()["choices"][0]["message"]["content"] == "red ok"
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="upload it again"):
        client.files.retrieve(file.id)
    message = refused(ask(url, file.id), 404, "file_not_found", "messages[0].content[0].image_url.url")
    assert "600 seconds" in message


def test_a_picture_may_be_the_body_itself_and_stands_beside_others(url: str):
    ids = [upload(url, picture(colour)).json()["id"] for colour in ("blue", "green")]
    assert ask(url, ids[1], ids[0], ids[1]).json()["choices"][0]["message"]["content"] == (
        "green blue green ok"
    )


REFUSED: dict[str, tuple[bytes, str, int, str, str | None]] = {
    "a text": (b"hello", "image/png", 400, "invalid_image", "file"),
    "nothing": (b"", "image/png", 400, "invalid_image", "file"),
    "too many pixels": (picture(size=101), "image/png", 400, "invalid_image", "file"),
    "another type": (picture(), "application/json", 415, "unsupported_media_type", None),
    "no type": (picture(), "", 415, "unsupported_media_type", None),
    "a form without boundary": (picture(), "multipart/form-data", 400, "invalid_form", None),
    "too many bytes": (bytes(100_001), "image/png", 413, "request_too_large", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_is_not_kept(url: str, case: str):
    data, kind, status, code, param = REFUSED[case]
    refused(upload(url, data, {"content-type": kind}), status, code, param)


@pytest.mark.parametrize(
    ("fields", "name", "code", "param"),
    [
        ({"purpose": "fine-tune"}, "file", "invalid_value", "purpose"),
        ({"secret": "1"}, "file", "unsupported_parameter", "secret"),
        ({}, "image", "unsupported_parameter", "image"),
        ({"purpose": "\ud83d"}, "file", "invalid_value", "purpose"),
    ],
)
def test_a_form_has_a_file_and_a_purpose_that_is_served(
    url: str, fields: dict[str, str], name: str, code: str, param: str
):
    data = {key: value.encode("utf-8", "surrogatepass") for key, value in fields.items()}
    answer = httpx.post(f"{url}{FILES}", data=data, files={name: ("a.png", picture())})
    refused(answer, 400, code, param)
    empty = httpx.post(f"{url}{FILES}", files={"purpose": (None, b"vision")})
    refused(empty, 400, "missing_required_parameter", "file")


def test_a_name_with_broken_characters_is_answered(url: str):
    body = b'--b\r\ncontent-disposition: form-data; name="file"; filename="\xff\xf0.png"\r\n\r\n'
    answer = upload(url, body + picture() + b"\r\n--b--", {"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200
    assert answer.json()["filename"].endswith(".png")


@pytest.mark.parametrize("name", ["file-", "file-" + "x" * 5000, "file-%00", "file-\u202e", "file-../../etc"])
def test_made_up_ids_are_not_found(url: str, name: str):
    refused(ask(url, name), 404, "file_not_found", "messages[0].content[0].image_url.url")
    assert httpx.get(f"{url}{FILES}/{name}").status_code == 404


def test_the_oldest_uploads_make_room_for_new_ones_in_bounded_memory(url: str):
    noise = picture("white") + bytes(20_000)
    ids = [upload(url, noise).json()["id"] for _ in range(4)]
    assert [httpx.get(f"{url}{FILES}/{one}").status_code for one in ids] == [404, 404, 200, 200]
