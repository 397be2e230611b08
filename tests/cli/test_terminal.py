"""What a corpus or a model writes reaches a terminal as text, never as commands to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from casa_core.errors import DataError
from pipelines.cli.app import app
from pipelines.cli.show.sequence import show_row
from pipelines.cli.show.watch import PlainWatcher
from pipelines.data.store.quarantine import Rejected, Tally
from tests.support.dag.planned import planned_stage
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import picture, running, settings_with

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x9b1m"
SPELLED = "a\\u001b[2J\\u001b]0;title\\u0007b\\u009b1m"


def assert_harmless(printed: str) -> None:
    assert "".join(printed.split()).count(SPELLED) >= 1
    assert not set(printed) & set("\x1b\x07\x9b")


def test_a_row_of_a_corpus(capsys):
    part = {"kind": "text", "role": "user", "text": HOSTILE, "trained": False}
    row = {"source": "s", "sample_id": HOSTILE, "media": [], "parts": [part], "meta": None}
    show_row(0, 1, row, [])
    assert_harmless(capsys.readouterr().out)


def test_examples_of_the_quarantine_in_an_error():
    entry = Rejected(source="s", file="f", row=0, sample_id="f/0", reason="bad_json", detail=HOSTILE)
    with pytest.raises(DataError) as caught:
        Tally.of([entry]).check("s", 1, 0.0)
    from pipelines.cli import app as module

    runner = CliRunner()
    with runner.isolation() as streams:
        module.report_error(caught.value)
        assert_harmless(streams[1].getvalue().decode())


def test_a_stages_message(capsys):
    stage = planned_stage("clean", "clean", Path("clean"))
    PlainWatcher([stage]).finished(stage, {"summary": {"headline": HOSTILE}}, cached=True)
    assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_of_the_endpoint(tmp_path: Path, options: list[str]):
    (tmp_path / "red.png").write_bytes(picture("red"))
    with running(FakeEngine(), settings_with(max_new_tokens=8)) as url:
        asked = ["ask", str(tmp_path / "red.png"), HOSTILE, "--url", url, *options]
        result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "red" in result.output
    if not options:
        assert_harmless(result.output)
    assert "\x1b" not in result.output
