"""The documentation page: all that `/openapi.json` has, readable without a script or another server."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from infra.api_keys import as_text, make_key
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, picture, running, settings_with


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


@pytest.fixture(scope="module")
def page(url: str) -> str:
    answer = httpx.get(f"{url}/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    return answer.text


def code_blocks(page: str) -> list[str]:
    return [unescape(block) for block in re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page, re.DOTALL)]


class Checker(HTMLParser):
    """Collects anchors and links, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(url: str, page: str):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    for link in checker.links:
        if link.startswith("#"):
            assert link[1:] in checker.ids
        else:
            assert httpx.get(f"{url}{link}").status_code == 200, link
    assert "<script" not in page
    assert "style=" not in page


def test_every_call_field_and_status_of_the_description_is_on_it(url: str, page: str):
    document = httpx.get(f"{url}/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert f"<b>{method.upper()}</b> {path}" in page
            assert all(f"<code>{status}</code>" in page for status in operation["responses"])
    for schema in document["components"]["schemas"].values():
        for field in schema.get("properties", {}):
            assert f"<code>{field}</code>" in page
    for message in ("session.start", "session.prompt", "session.ended"):
        assert message in page


def test_the_curl_example_runs_as_it_stands(url: str, page: str, tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(picture("blue"))
    [command] = [block for block in code_blocks(page) if block.startswith("curl")]
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    answer = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert answer == "blue what is in the picture?"


def test_the_python_example_runs_as_it_stands(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    (tmp_path / "cat.png").write_bytes(picture("blue"))
    monkeypatch.chdir(tmp_path)
    [example] = [block for block in code_blocks(page) if "OpenAI(" in block]
    exec(compile(example, "example", "exec"), {})
    assert capsys.readouterr().out == "blue what is in the picture?"


def test_an_endpoint_with_keys_shows_how_they_are_sent(tmp_path: Path):
    (tmp_path / "keys").write_text(as_text([make_key("a")[1]]))
    with running(FakeEngine(), settings_with(access={"keys": str(tmp_path / "keys")})) as url:
        blocks = code_blocks(httpx.get(f"{url}/docs").text)
    assert any("Bearer $CASA_API_KEY" in block for block in blocks)
    assert any('os.environ["CASA_API_KEY"]' in block for block in blocks)
    assert any("casa.key." in block for block in blocks)
    assert MODEL in blocks[0]
