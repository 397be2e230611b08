"""JSON that no client sends by mistake: read fast or refused by name, and the next request is answered."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.endpoint_settings import Limits
from serve.api.errors import ApiError
from serve.api.json_body import parse_json
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, running, settings_with

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


def with_field(text: str) -> str:
    """A good call with one more field, given as JSON."""
    return json.dumps(HELLO)[:-1] + f", {text}}}"


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(with_field(f'"metadata": {nested(depth)}'), "levels deep", id=f"{depth} deep")
        for depth in (65, 400, 900, 950, 1000, 5000, 9000)
    ]
    + [
        pytest.param('{"a":' * 5000, "levels deep", id="objects, unfinished"),
        pytest.param(with_field('"temperature": NaN'), "NaN", id="NaN"),
        pytest.param(with_field('"temperature": -Infinity'), "-Infinity", id="infinity"),
        pytest.param(with_field('"model": "other"'), "'model' stands twice", id="a name twice"),
        pytest.param(with_field('"metadata": {"a": 1, "a": 2}'), "'a' stands twice", id="inside, too"),
        pytest.param(with_field('"\\ud83d": 1, "\\ud83d": 2'), "stands twice", id="half a character, twice"),
        pytest.param(with_field(f'"seed": {"1" * 1_000_000}'), "too many digits", id="a million digits"),
        pytest.param(with_field(f'"metadata": [{"[]," * 20_000}0]'), "objects and lists", id="many lists"),
        pytest.param(
            with_field(f'"metadata": [{"1," * 1_000_000}0]'), "objects and lists", id="many numbers"
        ),
        pytest.param("", "required", id="nothing"),
        pytest.param("{'model': 1}", "not valid JSON", id="single quotes"),
    ],
)
def test_json_that_cannot_be_read_well_is_refused_at_once(url: str, body: str, says: str):
    began = time.monotonic()
    answer = httpx.post(f"{url}{CHAT}", content=body, headers=JSON, timeout=20)
    assert answer.status_code == 400, answer.text[:200]
    assert says in answer.json()["error"]["message"]
    assert time.monotonic() - began < 5
    assert httpx.post(f"{url}{CHAT}", json=HELLO).status_code == 200


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b'{"model": "\xe9"}', b"\x00" * 100])
def test_bytes_that_are_no_text_are_refused(url: str, body: bytes):
    answer = httpx.post(f"{url}{CHAT}", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("field", ['"temperature": 1e999999', '"temperature": 1e-999999', '"seed": 1.0'])
def test_numbers_at_the_edge_are_answered_or_refused_by_field(url: str, field: str):
    answer = httpx.post(f"{url}{CHAT}", content=with_field(field), headers=JSON)
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == field.split('"')[1]


@pytest.mark.parametrize(
    "body",
    [
        '{"\\ud83d": 1}',
        with_field('"\\ud83d": 1'),
        with_field('"user": "\\ud83d", "\\ud83d\\ud83d": "x"'),
        with_field('"stop": "\\ud83d"'),
        with_field('"response_format": {"\\ud83d": 1}'),
        json.dumps(HELLO).replace("hello", "\\ud83d"),
        json.dumps(HELLO).replace("user", "\\ud83d"),
        json.dumps(HELLO).replace(MODEL, "\\ud83d"),
    ],
)
def test_half_a_character_is_refused_wherever_it_stands(url: str, body: str):
    answer = httpx.post(f"{url}{CHAT}", content=body, headers=JSON)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]


def test_the_deepest_json_that_is_read_changes_nothing(url: str):
    body = with_field(f'"extra": {nested(60)}')
    assert httpx.post(f"{url}{CHAT}", content=body, headers=JSON).status_code == 200


def test_a_long_text_is_refused_before_it_is_tokenized_and_quickly(url: str):
    longest = Limits().text_characters
    for text, status in (("x" * longest, 200), ("x " * 9_000_000, 400), ("x" * (longest + 1), 400)):
        body = {**HELLO, "messages": [{"role": "user", "content": text}]}
        began = time.monotonic()
        answer = httpx.post(f"{url}{CHAT}", json=body, timeout=20)
        assert answer.status_code == status
        assert time.monotonic() - began < 5
        assert status == 200 or answer.json()["error"]["code"] == "text_too_long"
    assert answer.json()["error"]["param"] == "messages[0].content"
    shared = [{"role": role, "content": "x" * 30_000} for role in ("user", "assistant", "user", "user")]
    answer = httpx.post(f"{url}{CHAT}", json={**HELLO, "messages": shared})
    assert answer.json()["error"]["param"] == "messages[3].content"


def test_many_parts_are_refused_before_each_is_looked_at(url: str):
    parts = [{"type": "text", "text": "a"}] * 500_000
    body = {**HELLO, "messages": [{"role": "user", "content": parts}]}
    began = time.monotonic()
    answer = httpx.post(f"{url}{CHAT}", json=body, timeout=30)
    assert answer.status_code in (400, 413)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/xml", "multipart/form-data", ";", "x"]
)
def test_a_body_that_is_not_called_json_is_refused_by_the_headers_name(url: str, content_type: str | None):
    headers = {} if content_type is None else {"content-type": content_type}
    answer = httpx.post(f"{url}{CHAT}", content=json.dumps(HELLO), headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"
    assert "content-type" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/a+json"]
)
def test_json_by_its_other_names_is_read(url: str, content_type: str):
    headers = {"content-type": content_type}
    assert httpx.post(f"{url}{CHAT}", content=json.dumps(HELLO), headers=headers).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "identity, gzip", "x" * 500])
def test_a_compressed_body_is_refused_by_name_and_never_unpacked(url: str, encoding: str):
    bomb = gzip.compress(b" " * 50_000_000)
    answer = httpx.post(f"{url}{CHAT}", content=bomb, headers={**JSON, "content-encoding": encoding})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_encoding"
    assert "content-encoding" in answer.json()["error"]["message"]
    assert len(answer.text) < 400
    assert httpx.post(f"{url}{CHAT}", json=HELLO, headers={"content-encoding": "identity"}).status_code == 200


def test_what_is_read_is_what_pythons_own_parser_reads():
    text = json.dumps({"a": [1, 2.5, None, True, {"b": "ü\u2028"}], "c": {}})
    assert parse_json(text, Limits()) == json.loads(text)
    assert parse_json(text.encode(), Limits()) == json.loads(text)
    with pytest.raises(ApiError, match="2 objects and lists"):
        parse_json("[[],[]]", Limits(json_containers=2))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("w" * 601, True),
        ("é" * 601, True),
        ("data:image/png;base64," + "A" * 900, False),
        ("DATA:image/png;base64," + "A" * 900, False),
        ("w" * 600, False),
        ('"' * 900, False),
    ],
)
def test_a_string_beyond_any_text_is_refused_before_it_is_parsed(text: str, refused: bool):
    limits = Limits(text_characters=100, frame_bytes=1)
    for data in (json.dumps({"a": text}, ensure_ascii=False), json.dumps({"a": text}).encode()):
        if refused:
            with pytest.raises(ApiError, match="Send less text") as error:
                parse_json(data, limits)
            assert error.value.code == "text_too_long"
        else:
            assert parse_json(data, limits) == {"a": text}
