"""``casa keys`` as an operator uses it, up to the endpoint that asks for the keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from casa_core.errors import ConfigError
from infra import caption_client, endpoint_client
from pipelines.cli.app import app
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import running, settings_with, write_clip


def keys(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["keys", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result.output


def test_a_key_is_shown_once_and_opens_the_endpoint_to_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "keys.jsonl"
    secret = keys("add", "alice", "--file", str(file), "--requests-per-minute", "9").strip()
    assert secret not in file.read_text()
    assert keys("list", "--file", str(file)).startswith("alice: since 20")
    [listed] = json.loads(keys("list", "--file", str(file), "--json"))
    assert (listed["name"], listed["requests_per_minute"], listed["live_sessions"]) == ("alice", 9, None)
    assert "sha256" not in listed
    clip = write_clip(tmp_path / "a.mp4", ["red"])
    ask = [endpoint_client.user_turn("hello")]
    with running(FakeEngine(), settings_with(access={"keys": str(file)})) as url:
        for call in (
            lambda: list(endpoint_client.answer(url, ask, model="casa-test")),
            lambda: endpoint_client.served_model(url),
            lambda: list(caption_client.caption(url, clip)),
        ):
            monkeypatch.delenv("CASA_API_KEY", raising=False)
            with pytest.raises(ConfigError, match="invalid_api_key"):
                call()
            monkeypatch.setenv("CASA_API_KEY", secret)
            assert call()


def test_a_name_has_one_key_and_a_removed_one_is_gone(tmp_path: Path):
    file = str(tmp_path / "keys.jsonl")
    keys("add", "alice", "--file", file)
    assert "casa keys remove alice" in " ".join(keys("add", "alice", "--file", file, code=2).split())
    keys("add", "bob", "--file", file)
    keys("remove", "alice", "--file", file)
    assert "alice" not in (tmp_path / "keys.jsonl").read_text()
    assert "bob" in keys("remove", "alice", "--file", file, code=2)


@pytest.mark.parametrize("arguments", [("add", "a b"), ("add", ""), ("list",), ("remove", "x")])
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: tuple[str, ...]):
    text = keys(*arguments, "--file", str(tmp_path / "none.jsonl"), code=2)
    assert "Traceback" not in text
    assert "try:" in text
