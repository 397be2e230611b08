"""Everything a client can do wrong gets a 4xx in OpenAI's shape, and the server answers the next request."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, data_uri, image_part, picture, question, running, settings_with

BODY_LIMIT = 200_000
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = {
        "body_bytes": BODY_LIMIT,
        "images_per_request": 3,
        "image_pixels": 10_000,
        "waiting_requests": 64,
    }
    with running(FakeEngine(), settings_with(limits=limits)) as address:
        yield address


def with_url(image_url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image_url}}]}]


def assert_refused(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """Check the whole shape; returns the message."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert error["message"]
    assert response.headers["x-request-id"]
    return error["message"]


def assert_alive(url: str) -> None:
    answer = httpx.post(f"{url}{CHAT}", json={"model": MODEL, "messages": question("ok", picture("green"))})
    assert answer.json()["choices"][0]["message"]["content"] == "green ok"


TRUNCATED = picture("red", size=64, kind="JPEG")[:200]

REFUSED: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "another model": ({"model": "gpt-4", "messages": HELLO}, 404, "model_not_found", "model"),
    "no model": ({"messages": HELLO}, 400, "missing_required_parameter", "model"),
    "no messages": ({"model": MODEL}, 400, "missing_required_parameter", "messages"),
    "empty messages": ({"model": MODEL, "messages": []}, 400, "invalid_value", "messages"),
    "an empty user message": (
        {"model": MODEL, "messages": [{"role": "user", "content": ""}]},
        400,
        "invalid_value",
        "messages[0].content",
    ),
    "a user message of blanks": (
        {"model": MODEL, "messages": [{"role": "user", "content": " \n"}]},
        400,
        "invalid_value",
        "messages[0].content",
    ),
    "an empty text part": (
        {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
        400,
        "invalid_value",
        "messages[0].content",
    ),
    "an empty list of parts": (
        {"model": MODEL, "messages": [{"role": "user", "content": []}]},
        400,
        "invalid_value",
        "messages[0].content",
    ),
    "the assistant has the last word": (
        {"model": MODEL, "messages": [*HELLO, {"role": "assistant", "content": "hi"}]},
        400,
        "invalid_value",
        "messages[1].role",
    ),
    "an unknown role": (
        {"model": MODEL, "messages": [{"role": "tool", "content": "x"}]},
        400,
        "invalid_value",
        "messages[0].role",
    ),
    "an unknown kind of part": (
        {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        400,
        "invalid_value",
        "messages[0].content[0]",
    ),
    "an image in an assistant's turn": (
        {"model": MODEL, "messages": [{"role": "assistant", "content": [image_part(picture())]}, *HELLO]},
        400,
        "invalid_value",
        "messages[0].content[0].image_url.url",
    ),
    "a remote image": (
        {"model": MODEL, "messages": with_url("http://169.254.169.254/latest/meta-data")},
        400,
        "unsupported_image_url",
        "messages[0].content[0].image_url.url",
    ),
    "a file as an image": (
        {"model": MODEL, "messages": with_url("file:///etc/passwd")},
        400,
        "unsupported_image_url",
        "messages[0].content[0].image_url.url",
    ),
    "an image URL that is no string": (
        {"model": MODEL, "messages": with_url(7)},
        400,
        "invalid_value",
        "messages[0].content[0].image_url.url",
    ),
    "broken base64": (
        {"model": MODEL, "messages": with_url("data:image/png;base64,@@@@")},
        400,
        "invalid_image",
        "messages[0].content[0].image_url.url",
    ),
    "a text as an image": (
        {"model": MODEL, "messages": with_url(data_uri(b"hello", "image/png"))},
        400,
        "invalid_image",
        "messages[0].content[0].image_url.url",
    ),
    "a data URI of another type": (
        {"model": MODEL, "messages": with_url(data_uri(picture(), "text/html"))},
        400,
        "invalid_image",
        "messages[0].content[0].image_url.url",
    ),
    "an empty image": (
        {"model": MODEL, "messages": with_url("data:image/png;base64,")},
        400,
        "invalid_image",
        "messages[0].content[0].image_url.url",
    ),
    "a truncated image": (
        {"model": MODEL, "messages": with_url(data_uri(TRUNCATED, "image/jpeg"))},
        400,
        "invalid_image",
        "messages[0].content[0].image_url.url",
    ),
    "too many pixels": (
        {"model": MODEL, "messages": question("x", picture(size=101))},
        400,
        "invalid_image",
        "messages[0].content[0].image_url.url",
    ),
    "too many images": (
        {"model": MODEL, "messages": question("x", *[picture()] * 4)},
        400,
        "too_many_images",
        "messages",
    ),
    "an unknown parameter": (
        {"model": MODEL, "messages": HELLO, "frobnicate": 1},
        400,
        "unsupported_parameter",
        "frobnicate",
    ),
    "more choices than are given": ({"model": MODEL, "messages": HELLO, "n": 9}, 400, "invalid_value", "n"),
    "no choice": ({"model": MODEL, "messages": HELLO, "n": 0}, 400, "invalid_value", "n"),
    "a call of a tool in the history": (
        {
            "model": MODEL,
            "messages": [
                *HELLO,
                {"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]},
                *HELLO,
            ],
        },
        400,
        "unsupported_parameter",
        "messages[1].tool_calls",
    ),
    "a user message without content": (
        {"model": MODEL, "messages": [{"role": "user", "content": None}]},
        400,
        "invalid_value",
        "messages[0].content",
    ),
    "a repetition penalty": (
        {"model": MODEL, "messages": HELLO, "repetition_penalty": 1.1},
        400,
        "unsupported_parameter",
        "repetition_penalty",
    ),
    "a bias of tokens": (
        {"model": MODEL, "messages": HELLO, "logit_bias": {"5": -100}},
        400,
        "unsupported_parameter",
        "logit_bias",
    ),
    "fewer than no tokens": (
        {"model": MODEL, "messages": HELLO, "max_tokens": -2},
        400,
        "invalid_value",
        "max_tokens",
    ),
    "tools": (
        {"model": MODEL, "messages": HELLO, "tools": [{"type": "function"}]},
        400,
        "unsupported_parameter",
        "tools",
    ),
    "a JSON answer": (
        {"model": MODEL, "messages": HELLO, "response_format": {"type": "json_object"}},
        400,
        "unsupported_parameter",
        "response_format",
    ),
    "no tokens at all": (
        {"model": MODEL, "messages": HELLO, "max_tokens": 0},
        400,
        "invalid_value",
        "max_tokens",
    ),
    "a temperature out of range": (
        {"model": MODEL, "messages": HELLO, "temperature": 3},
        400,
        "invalid_value",
        "temperature",
    ),
    "a number as a string": (
        {"model": MODEL, "messages": HELLO, "max_tokens": "12"},
        400,
        "invalid_value",
        "max_tokens",
    ),
    "too many stop strings": (
        {"model": MODEL, "messages": HELLO, "stop": list("abcde")},
        400,
        "invalid_value",
        "stop",
    ),
    "a conversation that the engine refuses": (
        {"model": MODEL, "messages": [{"role": "user", "content": "too long"}]},
        400,
        "invalid_request",
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_wrong_request_is_refused_and_the_server_lives_on(url: str, case: str, stream: bool):
    body, status, code, param = REFUSED[case]
    assert_refused(httpx.post(f"{url}{CHAT}", json={**body, "stream": stream}), status, code, param)
    assert_alive(url)


@pytest.mark.parametrize("body", [b"{", b"", b"not json", b'{"model": "x",}', b"\xff\xfe", b"[" * 50_000])
def test_malformed_json_is_refused(url: str, body: bytes):
    response = httpx.post(f"{url}{CHAT}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert_alive(url)


def test_a_body_that_is_no_object_is_refused(url: str):
    assert httpx.post(f"{url}{CHAT}", json=[1, 2]).status_code == 400
    assert httpx.post(f"{url}{CHAT}", json="hello").status_code == 400


def test_an_oversized_body_is_refused_by_its_declared_length(url: str):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * (BODY_LIMIT + 1)}]}
    assert_refused(httpx.post(f"{url}{CHAT}", json=body), 413, "request_too_large")
    assert_alive(url)


def test_an_oversized_body_without_a_declared_length_is_cut_off_while_it_arrives(url: str):
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"model": "'
        for _ in range(2000):
            sent += 50_000
            yield b"x" * 50_000

    try:
        response = httpx.post(f"{url}{CHAT}", content=endless(), headers={"content-type": "application/json"})
        assert_refused(response, 413, "request_too_large")
    except httpx.WriteError:  # the server may hang up before it is sent everything
        pass
    assert sent < 100_000_000
    assert_alive(url)


def test_a_body_that_never_becomes_whole_is_given_up_and_others_are_answered_meanwhile():
    with running(FakeEngine(), settings_with(limits={"body_seconds": 1.0})) as address:
        host, port = address.removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        slow = []
        for _ in range(50):
            slow.append(socket.create_connection((host, int(port))))
            slow[-1].sendall(f'{head}content-length: 1000\r\n\r\n{{"mod'.encode())
        assert_alive(address)
        for one in slow:
            one.settimeout(10)
            answer = one.recv(65536).decode()
            assert answer.startswith("HTTP/1.1 408"), answer
            assert "request_timeout" in answer
            one.close()
        assert_alive(address)


def test_the_bodies_of_all_requests_in_progress_are_bounded_together():
    limits = {"body_bytes": 100_000, "bodies_bytes": 150_000, "body_seconds": 10.0}
    with running(FakeEngine(), settings_with(limits=limits)) as address:
        host, port = address.removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        held = socket.create_connection((host, int(port)))
        held.sendall(f"{head}content-length: 95000\r\n\r\n".encode() + b" " * 90_000)
        time.sleep(0.3)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 70_000}]}
        refused = httpx.post(f"{address}{CHAT}", json=body)
        assert_refused(refused, 429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert_alive(address)
        held.close()
        time.sleep(0.3)
        for _ in range(4):  # what was answered or given up holds nothing
            assert httpx.post(f"{address}{CHAT}", json=body).status_code == 200


def test_the_openai_client_raises_its_own_exceptions(url: str):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=MODEL, messages=with_url("https://example.com/cat.png"))
    assert refusal.value.code == "unsupported_image_url"
    assert "never fetches" in refusal.value.message


def test_unknown_paths_and_methods_have_the_same_shape(url: str):
    assert_refused(httpx.get(f"{url}/v2/anything"), 404, "not_found")
    response = httpx.get(f"{url}{CHAT}")
    assert_refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_an_engine_failure_is_a_500_that_tells_nothing_but_is_logged(
    url: str, caplog: pytest.LogCaptureFixture
):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "explode"}]}
    with caplog.at_level(logging.ERROR, logger="casa.serve"):
        response = httpx.post(f"{url}{CHAT}", json=body, headers={"x-request-id": "abc-123"})
    message = assert_refused(response, 500, "internal_error")
    assert response.json()["error"]["type"] == "server_error"
    assert "abc-123" in message
    assert "must not reach" not in response.text
    assert any("abc-123" in record.getMessage() and record.exc_info for record in caplog.records)
    assert_alive(url)


def test_a_failure_in_the_middle_of_a_stream_ends_it_with_an_error_event(url: str):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": "one two midway! three"}]
    words: list[str] = []

    def read_all() -> None:
        for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True):
            words.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError) as failure:
        read_all()
    assert "".join(words) == "one two"
    assert failure.value.code == "internal_error"
    assert_alive(url)


def test_a_request_that_fails_does_not_take_its_batch_with_it():
    with running(FakeEngine(delay_s=0.05), settings_with()) as url, ThreadPoolExecutor(6) as pool:

        def ask(text: str) -> int:
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
            return httpx.post(f"{url}{CHAT}", json=body, timeout=20).status_code

        texts = ["a", "explode", "b", "too long", "c", "d"]
        assert list(pool.map(ask, texts)) == [200, 500, 200, 400, 200, 200]


def test_more_waiting_requests_than_the_limit_are_told_to_come_back():
    settings = settings_with(limits={"waiting_requests": 2, "answers": 1})
    with running(FakeEngine(delay_s=0.3), settings) as url, ThreadPoolExecutor(8) as pool:
        body = {"model": MODEL, "messages": HELLO}
        answers = list(pool.map(lambda _: httpx.post(f"{url}{CHAT}", json=body, timeout=20), range(8)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert_refused(refused[0], 429, "overloaded")
        assert int(refused[0].headers["retry-after"]) >= 1
        assert any(answer.status_code == 200 for answer in answers)


def test_more_open_streams_than_the_limit_are_told_to_come_back():
    settings = settings_with(limits={"waiting_requests": 1, "answers": 1})
    with running(FakeEngine(delay_s=0.05), settings) as url, ThreadPoolExecutor(1) as pool:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a b c d e f g h"}], "stream": True}
        with httpx.stream("POST", f"{url}{CHAT}", json=body) as first:
            lines = first.iter_lines()
            next(lines)
            second = pool.submit(httpx.post, f"{url}{CHAT}", json=body, timeout=20)
            time.sleep(0.1)
            assert_refused(httpx.post(f"{url}{CHAT}", json=body), 429, "overloaded")
            assert list(lines)[-2] == "data: [DONE]"
            assert second.result().status_code == 200
        assert httpx.post(f"{url}{CHAT}", json=body).status_code == 200


def test_the_interface_describes_itself(url: str):
    document = httpx.get(f"{url}/openapi.json").json()
    assert "/v1/chat/completions" in document["paths"]
    assert "ChatCompletionRequest" in document["components"]["schemas"]
