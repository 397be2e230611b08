"""Each request and session leaves one line with its id, and no line holds what was asked or shown."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from infra.api_keys import as_text, make_key
from serve.observe.logs import JsonFormatter, TextFormatter, configure_logs
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, binary_frame, picture, question, running, settings_with

SECRET = "the viewer's own words"


class Lines(logging.Handler):
    """Keeps what a formatter makes of each record, as the process writes it."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def until(self, found: Callable[[str], bool]) -> str:
        """The first line that is found; a request's is written just after its answer."""
        end = time.monotonic() + 5
        while not (some := [line for line in self.lines if found(line)]):
            assert time.monotonic() < end, self.lines
            time.sleep(0.01)
        return some[0]

    def of(self, logger: str) -> dict[str, Any]:
        return json.loads(self.until(lambda line: f'"{logger}"' in line))


@pytest.fixture
def logger() -> logging.Logger:
    """The project's logger; every test leaves it as it was."""
    return logging.getLogger("casa")


def listening(logger: logging.Logger, formatter: logging.Formatter) -> Lines:
    lines = Lines(formatter)
    logger.handlers, logger.propagate = [lines], False
    logger.setLevel(logging.INFO)
    return lines


@pytest.fixture
def json_lines(logger: logging.Logger) -> Lines:
    return listening(logger, JsonFormatter())


@pytest.fixture
def url(json_lines: Lines) -> Iterator[str]:
    with running(FakeEngine(), settings_with(max_new_tokens=8)) as address:
        yield address


def ask(url: str, text: str, request_id: str) -> httpx.Response:
    body = {"model": MODEL, "messages": question(text, picture("red"))}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-request-id": request_id})


def test_a_request_leaves_one_line_with_its_id_route_and_tokens(url: str, json_lines: Lines):
    ask(url, SECRET, "mine-1")
    line = json_lines.of("casa.serve.access")
    assert line["request_id"] == "mine-1"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["tokens"] == 5
    assert 0 < line["seconds"] < 5
    assert "code" not in line
    assert len([one for one in json_lines.lines if "access" in one]) == 1


def test_a_refusal_names_its_code(url: str, json_lines: Lines):
    ask(url, "too long", "mine-2")
    line = json_lines.of("casa.serve.access")
    assert (line["status"], line["code"]) == (400, "invalid_request")


def test_every_line_of_a_failure_names_the_request(url: str, json_lines: Lines):
    answer = ask(url, "explode", "mine-3")
    assert answer.status_code == 500
    json_lines.until(lambda line: '"casa.serve.access"' in line)
    assert len(json_lines.lines) >= 2
    for text in json_lines.lines:
        assert json.loads(text)["request_id"] == "mine-3"
    assert any("Traceback" in json.loads(text).get("exception", "") for text in json_lines.lines)


def test_a_session_leaves_a_line_with_what_became_of_its_frames(url: str, json_lines: Lines):
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as socket:
        socket.send(json.dumps({"type": "session.start", "query": SECRET}))
        socket.recv(timeout=5)
        for number, data in enumerate((picture("red"), b"no picture")):
            socket.send(binary_frame(number / 2, data))
            socket.recv(timeout=5)
        socket.send(json.dumps({"type": "session.end"}))
        socket.recv(timeout=5)
    line = json_lines.of("casa.serve.session")
    assert (line["captioned"], line["refused"], line["dropped"], line["result"]) == (1, 1, 0, "closed")
    connection = json_lines.of("casa.serve.access")
    assert (connection["method"], connection["route"], connection["status"]) == (
        "WEBSOCKET",
        "/v1/live",
        1000,
    )
    assert connection["request_id"] == line["request_id"]


def test_no_line_holds_what_was_asked_answered_or_shown(url: str, json_lines: Lines):
    for text in (SECRET, f"{SECRET} too long", f"{SECRET} \ud83d".encode("utf-8", "replace").decode()):
        ask(url, text, "mine-4")
    httpx.post(f"{url}/v1/chat/completions", content=SECRET)
    httpx.get(f"{url}/{SECRET}?key={SECRET}")
    json_lines.until(lambda line: '"other"' in line)
    assert len(json_lines.lines) == 5
    assert not any(word in line for line in json_lines.lines for word in ("viewer", "base64"))


def test_monitors_leave_no_lines(url: str, json_lines: Lines):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert httpx.get(f"{url}{path}").status_code == 200
    ask(url, "hello", "mine-5")
    assert json_lines.of("casa.serve.access")["request_id"] == "mine-5"
    assert len(json_lines.lines) == 1


def test_the_lines_for_people_are_short_and_spell_out_control_characters(logger: logging.Logger):
    lines = listening(logger, TextFormatter())
    with running(FakeEngine(), settings_with(max_new_tokens=8)) as url:
        ask(url, "hello", "mine-6")
        found = lines.until(lambda line: "mine-6" in line)
        logger.info("a\x1b[2Jb")
    assert found.count("mine-6") == 1
    assert "info casa.serve.access mine-6 POST /v1/chat/completions 200, " in found
    assert "a\\u001b[2Jb" in lines.lines[-1]


def test_a_process_chooses_one_form_for_its_lines_and_its_servers_warnings(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
):
    configure_logs("text")
    configure_logs("json", "casa_test_server")
    logging.getLogger("casa.serve").info("ready")
    logging.getLogger("casa_test_server.error").info("Waiting for connections to close.")
    logging.getLogger("casa_test_server.error").warning("Invalid HTTP request received.")
    written = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in written] == ["ready", "Invalid HTTP request received."]


def test_a_line_names_the_keys_owner_and_never_the_key(json_lines: Lines, tmp_path: Path):
    secret, stored = make_key("alice")
    (tmp_path / "keys").write_text(as_text([stored]))
    with running(FakeEngine(), settings_with(access={"keys": str(tmp_path / "keys")})) as url:
        for key in (secret, "wrong"):
            httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
        json_lines.until(lambda line: '"invalid_api_key"' in line)
    known, unknown = map(json.loads, json_lines.lines)
    assert (known["key"], known["status"]) == ("alice", 200)
    assert "key" not in unknown
    assert unknown["status"] == 401
    assert not any(secret in line for line in json_lines.lines)
