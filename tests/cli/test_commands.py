"""The ``casa`` command as a user meets it."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from pathlib import Path

import pytest
import requests
from typer.main import get_command
from typer.testing import CliRunner

from pipelines.cli.app import app, spare_loopback_the_proxy
from pipelines.cli.show.format import headline
from tests.support.paths import ROOT

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def casa(*arguments: str, code: int = 0) -> str:
    """Run ``casa``; returns everything it printed, or with `--json` what is for a script."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result.stdout if "--json" in arguments else result.output


def nothing_serves() -> list[str]:
    """Overrides that put the endpoint on a port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return ["--set", f"where.serve.port={probe.getsockname()[1]}"]


def test_there_are_the_documented_commands():
    assert {"run", "plan", "status", "logs", "stop", "verify", "ask", "caption", "inspect", "doctor"} <= set(
        COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str):
    text = casa(command, "--help")
    assert "Examples:" in text
    assert re.search(rf"^\W*casa {command}\b", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_and_option_has_a_description(command: str):
    for parameter in get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert getattr(parameter, "help", None), f"casa {command}: {parameter.name}"


@pytest.mark.parametrize("command", ["run", "prepare", "train", "plan", "sweep"])
def test_commands_that_take_a_recipe_take_its_store(command: str):
    assert "where.store" in casa(command, "--help")


def test_a_store_is_short_for_the_recipes_setting(tmp_path: Path):
    by_setting, by_option = (
        casa("plan", "quickstart", "--json", *given)
        for given in (["--set", f"where.store={tmp_path}"], ["--store", str(tmp_path)])
    )
    assert by_setting == by_option
    assert str(tmp_path) in by_option
    (tmp_path / "file").touch()
    refused = casa("run", "--store", str(tmp_path / "file"), code=2)
    assert "is a file" in " ".join(refused.replace("│", " ").split())  # in a box, whose lines wrap


def test_casa_alone_shows_what_there_is():
    result = CliRunner().invoke(app, [])
    assert "doctor" in result.output
    assert "casa stop" in result.output


def test_a_plan_lists_every_stage_with_its_reason(tmp_path: Path):
    text = casa("plan", "--set", f"where.store={tmp_path}/store", *nothing_serves())
    for stage in ("corpus-vqa", "clean-live", "pack", "train-blind", "evaluate", "deploy", "report"):
        assert stage in text
    assert "never made in this store" in text
    assert not (tmp_path / "store").exists()


def test_a_plan_as_json_is_for_scripts(tmp_path: Path):
    planned = json.loads(casa("plan", "--json", "--set", f"where.store={tmp_path}", *nothing_serves()))
    stages = {stage["stage"]: stage for stage in planned}
    assert stages["clean-vqa"]["inputs"] == {"corpus": "corpus-vqa"}
    assert stages["train"]["status"] == "run"
    assert stages["deploy"]["reason"] == "not running, not as asked for, or not recorded"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--set", "train.stepz=3"], "did you mean `train.steps`?"),
        (["plan", "quikstart"], "Did you mean `quickstart`?"),
        (["run", "--set", "train.steps=none"], "integer"),
        (["status", "--store", "nowhere-at-all"], "`casa run` starts one"),
        (["logs", "train", "--store", "nowhere-at-all"], "There is no run"),
    ],
)
def test_a_mistake_ends_with_2_and_a_way_out_instead_of_a_traceback(arguments: list[str], message: str):
    text = casa(*arguments, code=2)
    assert message in text
    assert "try: " in text
    assert "Traceback" not in text


def test_stopping_when_nothing_runs_is_no_error(tmp_path: Path):
    assert "Nothing was running." in casa("stop", "--store", str(tmp_path))
    assert "Nothing was running." in casa("stop", "--store", str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_asking_an_endpoint_that_is_not_there_ends_with_1(tmp_path: Path):
    picture = tmp_path / "a.png"
    picture.write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc0"
            "000003010100c9fe92ef0000000049454e44ae426082"
        )
    )
    text = casa("ask", str(picture), "What is it?", "--url", "http://127.0.0.1:9", code=1)
    assert "http://127.0.0.1:9" in text
    assert "Traceback" not in text


def test_the_doctor_lists_what_is_missing_as_json_too(tmp_path: Path):
    checks = json.loads(casa("doctor", "--json", "--store", str(tmp_path)))
    assert {"name", "level", "found", "cost", "remedy"} == checks[0].keys()
    assert "Python" in casa("doctor", "--store", str(tmp_path))


def test_help_imports_nothing_that_takes_long():
    import subprocess
    import sys

    program = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "from pipelines.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "--help"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "pipelines" in loaded
    assert not loaded & {"torch", "ray", "transformers", "deepspeed", "pyarrow", "pandas", "numpy", "av"}


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        ({"headline": "93 % right", "n": 1}, "93 % right"),
        ({"rows": 12000, "loss": 0.123456}, "rows 12,000 · loss 0.1235"),
        ({"vqa": {"accuracy": 0.5}, "path": "/x", "flag": True}, "vqa accuracy 0.5"),
        ({}, ""),
    ],
)
def test_a_summary_becomes_one_line(summary: dict, line: str):
    assert headline(summary) == line


def test_requests_to_this_machine_go_around_a_proxy(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.setenv("no_proxy", "")
    spare_loopback_the_proxy()
    assert urllib.request.proxy_bypass_environment("127.0.0.1:8265")
    assert urllib.request.proxy_bypass_environment("intranet.example")
    assert requests.utils.should_bypass_proxies("http://127.0.0.1:8265/api/version", no_proxy=None)
    assert not requests.utils.should_bypass_proxies("http://head.example:8265/", no_proxy=None)
