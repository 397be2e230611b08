"""``casa ask`` against a running endpoint: several pictures, further questions, words of any kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli.app import app
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import picture, running, settings_with


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    names = []
    for colour in ("red", "blue"):
        (path := tmp_path / f"{colour}.png").write_bytes(picture(colour))
        names.append(str(path))
    return names


def ask(url: str, *arguments: str, lines: str = "") -> Result:
    """What the command does."""
    return CliRunner().invoke(app, ["ask", *arguments, "--url", url], input=lines, env={"COLUMNS": "120"})


def test_pictures_and_a_question_get_an_answer(url: str, images: list[str]):
    result = ask(url, *images, "what is this")
    assert (result.exit_code, result.stdout) == (0, "red blue what is this\n")


def test_a_question_needs_no_picture(url: str):
    assert ask(url, "what is this").stdout == "what is this\n"


def test_further_questions_are_about_the_same_pictures_until_an_empty_line(url: str, images: list[str]):
    result = ask(url, *images, "one", "--chat", lines="two\nthree\n\nfour\n")
    assert (result.exit_code, result.stdout) == (0, "red blue one\nred blue two\nred blue three\n")
    assert ask(url, images[0], "one", "--chat").stdout == "red one\n", "the end of the input ends it too"


def test_as_json_it_names_pictures_and_question(url: str, images: list[str]):
    result = ask(url, *images, "one", "--json")
    assert json.loads(result.stdout) == {"images": images, "question": "one", "answer": "red blue one"}


def test_a_missing_picture_is_named(url: str):
    result = ask(url, "nowhere.png", "what is it")
    assert result.exit_code == 2
    assert "nowhere.png" in result.output
