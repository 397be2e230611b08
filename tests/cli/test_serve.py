"""``casa serve``: a checkpoint becomes an endpoint by one command, and one key ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from infra import endpoint_client
from pipelines.cli.app import app
from tests.support.paths import ROOT
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.server import picture

PROGRAM = "from pipelines.cli import main; main()"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("store") / "my model", ["what colour is it red green"])


@contextmanager
def served(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command at work, and its first line of output."""
    command = [sys.executable, "-c", PROGRAM, "serve", *map(str, arguments), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, line
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it wrote until its end, after an interrupt from the keyboard."""
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("Ended.")
    return output, errors


def test_a_checkpoint_answers_and_ends_at_the_interrupt(checkpoint: Path, tmp_path: Path):
    options = ("--json", "--log", "json", "--set", "max_new_tokens=4", "--set", "limits.sessions=3")
    with served(checkpoint, *options) as (process, line):
        facts = json.loads(line)
        assert facts["model"] == "my-model"
        (tmp_path / "red.png").write_bytes(picture("red"))
        turn = endpoint_client.user_turn("what colour", [tmp_path / "red.png"])
        pieces = "".join(endpoint_client.answer(facts["url"], [turn]))
        assert pieces == "".join(endpoint_client.answer(facts["url"], [turn], stream=False))
        scraped = httpx.get(f"{facts['url']}/metrics").text
        assert "casa_engine_up 1.0" in scraped
        assert "casa_engine_kv_capacity_tokens" in scraped
        _, errors = ended(process)
    assert "Loading" in errors
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    asked = [one for one in lines if one.get("route") == "/v1/chat/completions"]
    assert [one["status"] for one in asked] == [200, 200]


@pytest.mark.slow
def test_several_checkpoints_answer_by_their_names(checkpoint: Path):
    with served(checkpoint, f"second={checkpoint}", "--set", "max_new_tokens=4") as (process, line):
        url = line.split(" answers at ")[1].split(" ")[0]
        assert process.stdout is not None
        assert "  also        second\n" in iter(process.stdout.readline, "")
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["my-model", "second"]
        turn = endpoint_client.user_turn("what colour", [])
        answers = ["".join(endpoint_client.answer(url, [turn], model=one["id"])) for one in models]
        assert answers[0] == answers[1], "it is one checkpoint twice"
        ended(process)


def test_two_checkpoints_of_one_name_are_refused(checkpoint: Path):
    assert "Two checkpoints are called my-model." in refused(checkpoint, checkpoint, "--port", "0")


def test_it_prints_where_it_answers_and_a_line_to_try(checkpoint: Path):
    with served(checkpoint, "--name", "tiny") as (process, line):
        assert line.startswith("tiny answers at http://127.0.0.1:")
        assert process.stdout is not None
        output = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
        ended(process)
    assert "curl -s http://127.0.0.1:" in output
    assert '"model": "tiny"' in output


@pytest.mark.slow
def test_an_interrupt_while_it_loads_ends_it_as_quietly(checkpoint: Path):
    command = [sys.executable, "-c", PROGRAM, "serve", str(checkpoint), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Loading")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_a_port_that_is_taken_is_reported_before_anything_is_loaded(checkpoint: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(checkpoint, "--port", str(port))
    assert f"Port {port} on 127.0.0.1 cannot be opened." in said
    assert "--port 0" in said
    assert "Loading" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "fp16"], "dtype"),
        (["--set", "limits.sesions=3"], "sessions"),
        (["--set", "limits.sessions=0"], "limits.sessions"),
        (["--name", "a b"], "model_name"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--keys", "no-such-file"], "no-such-file"),
        (["--log", "xml"], "--log"),
    ],
)
def test_a_wrong_option_is_named(checkpoint: Path, options: list[str], message: str):
    assert message in refused(checkpoint, "--port", "0", *options)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path):
    assert "is not a checkpoint" in refused(tmp_path)
