"""Two models on two engines of the real Ray Serve: each is asked for where it is, and moves with streams."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from tests.support.serve.cluster import replicas, wait_until, watching
from tests.support.serve.server import question

pytestmark = pytest.mark.slow
OWN, OTHER = "one", "two"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    for name in (OWN, OTHER):
        (root / name).mkdir()
    return {
        "model_folder": str(root / OWN),
        "model_name": OWN,
        "models": {OTHER: {"folder": str(root / OTHER)}, "broken": {"folder": str(root / "missing")}},
        "models_per_engine": 1,
        "fingerprint": "models",
        "max_new_tokens": 32,
        "live_query": "",
        "replicas": {"min": 2, "max": 2},
        "num_cpus": 0.1,
        "engine": "tests.support.serve.fakes:NamedFake",
        "limits": {"idle_seconds": 300},
    }


def asked(url: str, model: str, **options: Any) -> httpx.Response:
    body = {"model": model, "messages": question("hi"), **options}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def place(url: str, model: str) -> str:
    """Which process answers for a model."""
    answer = asked(url, model)
    assert answer.status_code == 200, answer.text
    named, _, pid = answer.json()["choices"][0]["message"]["content"].split()[0].partition("@")
    assert named == model
    return pid


def test_each_model_is_asked_for_where_it_is_and_its_streams_take_it_along(
    url: str, cluster: ServeSubmissionClient
):
    wait_until(lambda: len(replicas(cluster)) == 2, 60, "two engines run")
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [OWN, OTHER, "broken"]

    first = place(url, OTHER)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: place(url, OTHER), range(24))) == {first}, "it is loaded once"
    wait_until(lambda: first not in {place(url, OWN) for _ in range(4)}, 20, "the router has heard of it")
    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(lambda number: (number % 2, place(url, (OWN, OTHER)[number % 2])), range(48)))
    assert len(places) == 2, "no engine gives up its model for the other's"
    assert "[DONE]" in asked(url, OTHER, stream=True).text

    refused = asked(url, "broken")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
    assert "missing" not in refused.text

    with watching(url, "look", OTHER) as client:
        client.show(0.0, "red")
        holder = client.hear(0.0).split()[0]
        assert holder.partition("@")[0] == OTHER
        os.kill(int(holder.partition("@")[2]), signal.SIGKILL)
        client.show(1.0, "blue")
        words = client.hear(1.0, 60).split()
        assert words[:3] == [words[0], "look", "blue"]
        assert words[0].partition("@")[0] == OTHER
        assert words[0] != holder
        assert [move["exact"] for move in client.moves] == [False]
        client.end()
