"""The live page's files: complete, self-contained, and nothing but them is served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import picture, running, settings_with, write_clip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_clip(folder / "a.mp4", ["red", "green"])
    write_clip(folder / "b.mp4", ["blue"])
    (folder / "notes.txt").write_text("private")
    index = {"a.mp4": {"title": "Red, then green", "query": "colours"}}
    (folder / "clips.json").write_text(json.dumps(index))
    (folder / "picture-1.png").write_bytes(picture("red"))
    (folder / "pictures.json").write_text(json.dumps({"picture-1.png": {"question": "what shape?"}}))
    return folder


@pytest.fixture(scope="module")
def url(clips: Path) -> Iterator[str]:
    with running(FakeEngine(), settings_with(demo_clips=str(clips))) as address:
        yield address


def test_the_page_loads_nothing_from_elsewhere(url: str):
    page = httpx.get(f"{url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    files = set(re.findall(r'<(?!a )[^>]*(?:src|href)="(/[^"]*)"', page.text))
    assert {"/web/app.js", "/web/style.css", "/web/icon.svg"} <= files
    pending = list(files)
    while pending:
        answer = httpx.get(f"{url}{pending.pop()}")
        assert answer.status_code == 200
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
        imported = set(re.findall(r'from "(/[^"]*)"', answer.text)) - files
        files |= imported
        pending += imported
    assert len(files) >= 7


def test_demo_clips_are_listed_with_titles_and_queries(url: str):
    assert httpx.get(f"{url}/demo/clips").json() == {
        "clips": [
            {"name": "a.mp4", "url": "/demo/clips/a.mp4", "title": "Red, then green", "query": "colours"},
            {"name": "b.mp4", "url": "/demo/clips/b.mp4", "title": "b", "query": ""},
        ]
    }


def test_sample_pictures_are_listed_with_questions_of_the_deployments_own_data(url: str):
    listed = httpx.get(f"{url}/demo/pictures").json()
    assert listed == {"pictures": [{"url": "/demo/pictures/picture-1.png", "question": "what shape?"}]}
    answer = httpx.get(f"{url}/demo/pictures/picture-1.png")
    assert answer.content == picture("red")
    assert answer.headers["content-type"] == "image/png"


def test_a_clip_is_served_in_ranges(url: str, clips: Path):
    whole = (clips / "a.mp4").read_bytes()
    answer = httpx.get(f"{url}/demo/clips/a.mp4", headers={"range": "bytes=10-19"})
    assert answer.status_code == 206
    assert answer.content == whole[10:20]
    assert answer.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert answer.headers["content-type"] == "video/mp4"
    assert httpx.get(f"{url}/demo/clips/a.mp4").content == whole


@pytest.mark.parametrize(
    "path",
    [
        "/demo/clips/notes.txt",
        "/demo/clips/clips.json",
        "/demo/pictures/pictures.json",
        "/demo/pictures/a.mp4",
        "/demo/clips/..%2Fa.mp4",
        "/web/..%2Fapp.py",
        "/web/x",
    ],
)
def test_nothing_else_can_be_read(url: str, path: str):
    answer = httpx.get(f"{url}{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_an_endpoint_without_clips_lists_none(tmp_path: Path):
    for folder in (None, str(tmp_path), str(tmp_path / "missing")):
        with running(FakeEngine(), settings_with(demo_clips=folder)) as address:
            assert httpx.get(f"{address}/demo/clips").json() == {"clips": []}
            assert httpx.get(f"{address}/demo/pictures").json() == {"pictures": []}
