"""Who is let in, over real connections: host names, origins with their preflights, and API keys."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from casa_core.engine.client import EngineClient
from casa_core.errors import ConfigError
from infra.api_keys import as_text, make_key
from serve.asgi import build_app
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, running, settings_with

CHAT = "/v1/chat/completions"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


@pytest.fixture(scope="module")
def listed() -> Iterator[str]:
    access = {"hosts": ["vision.example.org"], "origins": [PAGE]}
    with running(FakeEngine(), settings_with(access=access)) as address:
        yield address


SECRET, ALICE = make_key("alice", requests_per_minute=4, live_sessions=1)
FREE, BOB = make_key("bob")


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "keys").write_text(as_text([ALICE, BOB]))
    with running(FakeEngine(), settings_with(access={"keys": str(tmp_path / "keys")})) as address:
        yield address


def live(url: str, *protocols: str, Host: str | None = None, **headers: str) -> ClientConnection:
    address = url.removeprefix("http://")
    name, port = address.split(":")
    return connect(
        f"ws://{Host or address}/v1/live",
        sock=socket.create_connection((name, int(port))),
        additional_headers=headers,
        subprotocols=[Subprotocol(name) for name in protocols] or None,
        proxy=None,
    )


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, None)
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def assert_started(connection: ClientConnection) -> None:
    connection.send(json.dumps({"type": "session.start"}))
    assert json.loads(connection.recv(timeout=10))["type"] == "session.started"


def assert_closed(connection: ClientConnection, code: str, close: int) -> None:
    event = json.loads(connection.recv(timeout=10))
    assert (event["type"], event["fatal"], event["error"]["code"]) == ("error", True, code)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == close


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_page_whose_name_resolves_to_loopback_may_neither_chat_nor_open_sessions(url: str):
    page = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    assert_refused(httpx.post(f"{url}{CHAT}", json=HELLO, headers=page), 403, "host_not_allowed")
    assert_refused(httpx.get(f"{url}/", headers=page), 403, "host_not_allowed")
    with live(url, **page) as connection:
        assert_closed(connection, "host_not_allowed", 1008)


def test_a_request_with_two_host_names_is_refused(url: str):
    name, port = url.removeprefix("http://").split(":")
    with socket.create_connection((name, int(port))) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert raw.recv(65536).startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))


def test_a_health_check_needs_no_name(url: str):
    for path in ("/healthz", "/readyz"):
        assert httpx.get(f"{url}{path}", headers={"Host": "10.0.0.7:8000"}).status_code == 200


def test_a_foreign_page_may_not_chat_even_with_a_request_that_needs_no_preflight(url: str):
    page = {"Origin": PAGE, "content-type": "text/plain"}
    answer = httpx.post(f"{url}{CHAT}", content=json.dumps(HELLO), headers=page)
    assert_refused(answer, 403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert_refused(httpx.options(f"{url}{CHAT}", headers=preflight), 403, "origin_not_allowed")


def test_a_listed_page_may_chat_and_read_the_answer(listed: str):
    preflight = httpx.options(
        f"{listed}{CHAT}",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] in ("*", PAGE)
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    answer = httpx.post(f"{listed}{CHAT}", json=HELLO, headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("*", PAGE)
    with live(listed, Origin=PAGE) as connection:
        assert_started(connection)
    other = {"Origin": "https://other.example.org", "Access-Control-Request-Method": "POST"}
    assert_refused(httpx.options(f"{listed}{CHAT}", headers=other), 403, "origin_not_allowed")


def test_behind_a_proxy_the_public_name_is_the_pages_own(listed: str):
    page = {"Host": "Vision.Example.org:443", "Origin": "https://vision.example.org"}
    assert httpx.post(f"{listed}{CHAT}", json=HELLO, headers=page).status_code == 200
    with live(listed, **page) as connection:
        assert_started(connection)


@pytest.mark.parametrize("key", [None, "casa-wrong", ALICE.sha256], ids=["none", "unknown", "a hash"])
def test_without_a_known_key_nothing_is_answered(keyed: str, key: str | None):
    headers = {} if key is None else bearer(key)
    for answer in (
        httpx.post(f"{keyed}{CHAT}", json=HELLO, headers=headers),
        httpx.post(f"{keyed}{CHAT}", content=b"{", headers=headers),
        httpx.get(f"{keyed}/v1/models", headers=headers),
        httpx.get(f"{keyed}/demo/clips", headers=headers),
        httpx.get(f"{keyed}/anything", headers=headers),
    ):
        assert_refused(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert key is None or key not in answer.text
    with live(keyed, **headers) as connection:
        assert_closed(connection, "invalid_api_key", 1008)


def test_the_openai_client_raises_its_own_exceptions(keyed: str):
    client = openai.OpenAI(base_url=f"{keyed}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refusal:
        client.models.list()
    assert refusal.value.code == "invalid_api_key"
    assert [model.id for model in client.with_options(api_key=SECRET).models.list()] == [MODEL]


def test_the_page_and_health_checks_need_no_key(keyed: str):
    for path in ("/", "/healthz", "/readyz", "/openapi.json", "/web/app.js", "/favicon.ico"):
        assert httpx.get(f"{keyed}{path}").status_code == 200, path
    for path in ("/web/../v1/models", "//v1/models", "/V1/models", "/docs/../v1/models"):
        assert httpx.get(f"{keyed}{path}").status_code in (401, 404), path


def test_a_page_names_its_key_in_a_subprotocol_as_it_can_set_no_header(keyed: str):
    with live(keyed, "casa.live", f"casa.key.{SECRET}") as connection:
        assert connection.subprotocol == "casa.live"
        assert_started(connection)
    with live(keyed, "casa.live", "casa.key.wrong") as connection:
        assert connection.subprotocol == "casa.live"
        assert_closed(connection, "invalid_api_key", 1008)


def test_a_key_that_is_not_asked_for_does_no_harm(url: str):
    assert httpx.post(f"{url}{CHAT}", json=HELLO, headers=bearer("any")).status_code == 200
    with live(url, "casa.live", "casa.key.any") as connection:
        assert connection.subprotocol == "casa.live"
        assert_started(connection)


def test_calls_beyond_a_keys_share_are_told_when_to_come_back_and_others_go_on(keyed: str):
    answers = [httpx.post(f"{keyed}{CHAT}", json=HELLO, headers=bearer(SECRET)) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429]
    assert_refused(answers[-1], 429, "rate_limit_exceeded")
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert httpx.get(f"{keyed}/v1/models", headers=bearer(SECRET)).status_code == 200
    assert httpx.post(f"{keyed}{CHAT}", json=HELLO, headers=bearer(FREE)).status_code == 200


def test_sessions_beyond_a_keys_share_are_refused_however_they_are_opened(keyed: str):
    sessions = f"{keyed}/v1/streaming/sessions"
    opened = httpx.post(sessions, json={"type": "session.start"}, headers=bearer(SECRET))
    assert opened.status_code == 201
    assert_refused(httpx.post(sessions, headers=bearer(SECRET)), 429, "too_many_sessions")
    with live(keyed, **bearer(SECRET)) as second:
        second.send(json.dumps({"type": "session.start"}))
        assert_closed(second, "too_many_sessions", 1013)
    with live(keyed, **bearer(FREE)) as other:
        assert_started(other)
    httpx.delete(f"{sessions}/{opened.json()['id']}", headers=bearer(SECRET)).raise_for_status()
    with live(keyed, **bearer(SECRET)) as again:
        assert_started(again)


def test_a_session_whose_connection_was_lost_makes_place_for_its_keys_next(tmp_path: Path):
    (tmp_path / "keys").write_text(as_text([ALICE]))
    with running(FakeEngine(), settings_with(access={"keys": str(tmp_path / "keys")})) as url:
        with live(url, **bearer(SECRET)) as first:
            assert_started(first)
            first.socket.shutdown(socket.SHUT_RDWR)
        for _ in range(50):  # the server hears of the loss a moment later
            with live(url, **bearer(SECRET)) as second, suppress(ConnectionClosed):
                second.send(json.dumps({"type": "session.start"}))
                if json.loads(second.recv(timeout=10))["type"] == "session.started":
                    return
            time.sleep(0.05)
    pytest.fail("the place is still taken")


def test_no_key_is_written_into_a_log(keyed: str, caplog: pytest.LogCaptureFixture):
    explode: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "explode"}]}
    with caplog.at_level(logging.DEBUG):
        httpx.post(f"{keyed}{CHAT}", json=explode, headers=bearer(SECRET))
        with live(keyed, "casa.live", f"casa.key.{FREE}") as connection:
            assert_started(connection)
    ours = [r for r in caplog.records if not r.name.startswith(("websockets.client", "httpcore", "httpx"))]
    text = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in ours)
    assert "request" in text
    for key in (SECRET, FREE):
        assert key not in text


def test_an_endpoint_beyond_this_machine_without_keys_warns(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    for access, count in (({}, 1), ({"keys": str(tmp_path / "keys")}, 0)):
        (tmp_path / "keys").write_text(as_text([ALICE]))
        client = EngineClient(FakeEngine())
        with caplog.at_level(logging.WARNING, logger="casa.serve"):
            caplog.clear()
            build_app(client, settings_with(access=access, loopback_only=False))
        client.close()
        assert [("no API key" in record.getMessage()) for record in caplog.records] == [True] * count


def test_an_endpoint_without_its_file_of_keys_does_not_start(tmp_path: Path):
    client = EngineClient(FakeEngine())
    with pytest.raises(ConfigError, match="cannot be read"):
        build_app(client, settings_with(access={"keys": str(tmp_path / "none")}))
    client.close()
