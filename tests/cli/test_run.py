"""``casa run`` and its companions over toy stages, on a real Ray head."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra import local_ray
from pipelines.cli.app import app
from tests.support.http_servers import answering
from tests.support.paths import ROOT


@pytest.fixture
def store(tmp_path: Path, ray_folder: Path, ray_head: local_ray.RaySession) -> Path:
    """A store whose local head is the one that all tests share."""
    (tmp_path / "session").mkdir()
    shutil.copy(ray_folder / local_ray.SESSION_FILE, tmp_path / "session")
    return tmp_path


def start(stages: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.dag.cli_run", stages, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As from a terminal: a suite that runs in the background may itself ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def casa(stages: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Run ``casa``; returns its output and its errors."""
    process = start(stages, *arguments)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, output + errors
    return output, errors


def test_a_run_prints_what_happens_and_a_second_one_does_nothing(store: Path):
    setting = f"where.store={store}"
    output, _ = casa("chain", "run", "--set", setting)
    lines = [line.split("  ")[0] + " " + line.split("  ")[1].strip() for line in output.splitlines()[:4]]
    assert lines[0] == "one started"
    assert "two done in" in lines[3]
    assert "number 111" in output

    began = time.monotonic()
    output, _ = casa("chain", "run", "--set", setting)
    assert "one  already done" in output
    assert "two  already done" in output
    assert time.monotonic() - began < 10

    output, _ = casa("chain", "status", "--store", str(store), "--json")
    status = json.loads(output)
    assert [stage["state"] for stage in status["stages"]] == ["done", "done"]
    assert status["ray"].startswith("http://127.0.0.1:")
    made = status["stages"][1]["alias"].removeprefix("two@")
    shown = casa("chain", "status", "--store", str(store))[0].splitlines()
    assert shown[3].split()[:4] == ["two", "done", "1", made]

    output, _ = casa("chain", "logs", "two", "--store", str(store), "--follow")
    assert output.splitlines() == ["the number is 111"]
    assert "Did you mean `two`?" in casa("chain", "logs", "too", "--store", str(store), code=2)[1]


def test_a_run_as_json_lines_is_for_scripts(store: Path):
    output, _ = casa("chain", "run", "--json", "--set", f"where.store={store}")
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        *("started", "finished", "started", "finished", "result")
    ]
    assert events[-1]["artifacts"].keys() == {"one", "two"}


def test_a_failed_run_ends_with_1_and_shows_the_log(store: Path):
    _, errors = casa("failing", "run", "--set", f"where.store={store}", code=1)
    assert "Stage broken failed" in errors
    assert "ZeroDivisionError" in errors
    assert "casa logs broken" in errors
    output, _ = casa("failing", "status", "--store", str(store), "--json")
    assert json.loads(output)["stages"][0]["state"] == "failed"


def test_an_interrupted_run_prints_what_goes_on_and_how_to_resume(store: Path):
    process = start("gated", "run", "--set", f"where.store={store}")
    wait_for(store / "starts.txt")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Still running in Ray: slow" in errors
    assert "casa stop" in errors

    output, _ = casa("gated", "status", "--store", str(store), "--json")
    assert [stage["state"] for stage in json.loads(output)["stages"]] == ["running", "waiting"]
    _, errors = casa("gated", "logs", "after", "--store", str(store), code=2)
    assert "Stages with logs: slow." in errors
    (store / "gate").touch()
    output, _ = casa("gated", "run", "--set", f"where.store={store}")
    assert "watched again" in output or "already done" in output
    assert len((store / "starts.txt").read_text().splitlines()) == 1


def interrupt_twice(process: subprocess.Popen[str]) -> str:
    """Two interrupts within a second; returns what was printed as errors."""
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    # Python's last steps give SIGINT back to the kernel: a shell shows both as 130
    assert process.returncode in (130, -signal.SIGINT)
    return errors


def test_a_plan_that_is_interrupted_while_it_counts_ends_in_words(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "casa", "plan", "quickstart", "--training", "--store", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},  # nothing is remembered
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait(30) == 130, first + errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.json")), "half of a count is not kept"


def test_a_run_that_is_interrupted_twice_ends_in_words_with_the_store(store: Path):
    process = start("gated", "run", "--store", str(store))
    wait_for(store / "starts.txt")
    errors = interrupt_twice(process)
    (store / "gate").touch()
    assert f"casa run quickstart --store {store}" in errors
    assert f"casa stop --store {store}" in errors


def test_an_interrupt_while_the_head_starts_or_a_plan_is_made_ends_in_words(tmp_path: Path):
    (tmp_path / "session").mkdir()
    with (tmp_path / "session" / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another command does that starts the head
        process = start("gated", "run", "--store", str(tmp_path))
        wait_for(tmp_path / "session" / "run.json")
        time.sleep(1)
        assert "Interrupted." in interrupt_twice(process)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.slow
def test_stopping_ends_everything_and_keeps_what_is_done(tmp_path: Path):
    setting = f"where.store={tmp_path}"
    casa("chain", "run", "--set", setting)
    session = local_ray.read_session(tmp_path / "session")
    assert session is not None
    assert "Ended" in casa("chain", "stop", "--store", str(tmp_path))[0]
    assert local_ray.find(tmp_path / "session") is None
    output, _ = casa("chain", "status", "--store", str(tmp_path), "--json")
    assert json.loads(output)["ray"] is None
    assert [stage["state"] for stage in json.loads(output)["stages"]] == ["done", "done"]


def test_a_port_that_is_taken_is_found_before_anything_starts(tmp_path: Path):
    with answering(lambda method, path: (200, "<html>Another service</html>")) as (url, _):
        port = url.rpartition(":")[2]
        result = CliRunner().invoke(
            app,
            [
                "run",
                "quickstart",
                "--plain",
                "--set",
                f"where.store={tmp_path}",
                "--set",
                f"where.serve.port={port}",
            ],
        )
        assert result.exit_code == 1
        assert f"Port {port} on 127.0.0.1 is taken." in result.output
        assert "where.serve.port=" in result.output
        assert local_ray.find(tmp_path / "session") is None
        assert not (tmp_path / "jobs").exists()
