"""The kit that abuses an endpoint, small: every kind runs, is refused or held, and harms no other client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serve_abuse
from benchmarks.abuse_kinds import KINDS
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import running, settings_with

GOT = {
    "half-open": {"held"},
    "half a head": {"held"},
    "half a body": {"held"},
    "dripping bodies": {"held"},
    "silent WebSockets": {"101"},
    "1 GB declared": {"413"},
    "1 GB in chunks": {"413"},
    "19 MB of text": {"400"},
    "500,000 parts": {"400"},
    "5,000-deep JSON": {"400"},
    "16 x 40 megapixels": {"400"},
}


FEW = ("half a body", "1 GB in chunks", "5,000-deep JSON")


@pytest.mark.parametrize(
    "kinds", [FEW, pytest.param(tuple(KINDS), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_every_abuse_is_held_or_refused_and_no_other_client_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
):
    monkeypatch.setattr(serve_abuse, "WORST_RATIO", float("inf"))  # no timing is judged here
    assert GOT.keys() == KINDS.keys()
    output = tmp_path / "outcomes.json"
    with running(FakeEngine(), settings_with()) as url:
        own = [
            "--scale",
            "0.003",
            "--seconds",
            "1",
            "--nice",
            "0",
            "--output",
            str(output),
            "--kinds",
            *kinds,
        ]
        assert serve_abuse.main([url, *own]) == 0
    outcomes = json.loads(output.read_text())
    for outcome in outcomes:
        assert outcome["during"]["answers"] > 0
        assert outcome["during"]["failures"] == 0
        seen = set(outcome["got"]) - {"MB sent", "no answer", "closed"}
        assert seen <= GOT[outcome["name"]], outcome
