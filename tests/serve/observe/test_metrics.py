"""GET /metrics: what clients did is counted, in Prometheus's format, in each app for itself."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from casa_core.engine.events import Outcome, StreamMoved
from casa_core.engine.load import LoadSnapshot
from casa_core.engine.protocol import FrameImage
from serve.observe.client import ObservedSession
from serve.observe.exposition import merged
from serve.observe.metrics import Metrics, engine_families
from tests.support.serve.fakes import IMAGE_TOKENS, FakeEngine
from tests.support.serve.server import MODEL, binary_frame, picture, question, running, settings_with

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Name and labels → value, of every sample."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scraped:
    """The metrics of an endpoint, now."""

    def __init__(self, url: str) -> None:
        answer = httpx.get(f"{url}/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        self.text = answer.text
        self._samples = samples(answer.text)

    def value(self, name: str, **labels: str) -> float:
        return self._samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with(max_new_tokens=8)) as address:
        yield address


def ask(url: str, text: str, **options: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": question(text, picture("red")), **options}
    return httpx.post(f"{url}/v1/chat/completions", json=body)


def until(met: Any) -> None:
    """Wait until something holds; what a server does after its answer is done soon afterwards."""
    end = time.monotonic() + 5
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def session(url: str, query: str = "see") -> Iterator[Any]:
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as socket:
        socket.send(json.dumps({"type": "session.start", "query": query}))
        assert json.loads(socket.recv(timeout=5))["type"] == "session.started"
        yield socket


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_counted_with_its_tokens_and_times(url: str, stream: bool):
    assert ask(url, "what is this", stream=stream).status_code == 200
    found = Scraped(url)
    assert found.value("casa_http_requests_total", route="/v1/chat/completions", status="200") == 1
    assert found.value("casa_answers_total", finish_reason="stop") == 1
    assert found.value("casa_prompt_tokens_total") == 3
    assert found.value("casa_image_tokens_total") == IMAGE_TOKENS
    assert found.value("casa_generated_tokens_total", work="answer") == 4
    for name in ("time_to_first_token", "time_per_output_token", "answer"):
        assert found.value(f"casa_{name}_seconds_count") == 1
    first, whole = (found.value(f"casa_{name}_seconds_sum") for name in ("time_to_first_token", "answer"))
    assert 0 < first <= whole < 5


def test_every_way_an_answer_ends_has_its_own_count(url: str):
    assert ask(url, "a b c", max_tokens=2).status_code == 200
    assert ask(url, "too long").status_code == 400
    assert ask(url, "explode").status_code == 500
    body = {"model": MODEL, "messages": question("midway! x", picture()), "stream": True}
    assert "error" in httpx.post(f"{url}/v1/chat/completions", json=body).text
    found = Scraped(url)
    counted = {
        reason: found.value("casa_answers_total", finish_reason=reason)
        for reason in ("stop", "length", "refused", "error", "cancelled")
    }
    assert counted == {"stop": 0, "length": 1, "refused": 1, "error": 2, "cancelled": 0}
    assert found.value("casa_answers_running") == 0
    assert found.value("casa_refusals_total", code="internal_error") == 2
    assert found.value("casa_answer_seconds_count") == 1, "only finished answers have times"


def test_a_client_that_leaves_its_stream_is_counted_as_cancelled():
    with running(FakeEngine(delay_s=0.05), settings_with(max_new_tokens=64)) as url:
        body = {"model": MODEL, "messages": question("word " * 60, picture()), "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert Scraped(url).value("casa_answers_running") == 1
        until(lambda: Scraped(url).value("casa_answers_total", finish_reason="cancelled") == 1)
        assert Scraped(url).value("casa_answers_running") == 0


def test_paths_that_are_no_route_make_one_series_and_refused_bodies_theirs():
    with running(FakeEngine(), settings_with(limits={"body_bytes": 1000})) as url:
        for number in range(20):
            httpx.get(f"{url}/no/such/{number}")
        httpx.post(f"{url}/v1/chat/completions", content=b"x" * 2000)
        httpx.get(f"{url}/v1/models/{MODEL}")
        found = Scraped(url)
    assert found.value("casa_http_requests_total", route="other", status="404") == 20
    assert found.value("casa_http_requests_total", route="/v1/chat/completions", status="413") == 1
    assert found.value("casa_refusals_total", code="request_too_large") == 1
    assert found.value("casa_http_requests_total", route="/v1/models/{name:path}", status="200") == 1
    assert "/no/such" not in found.text


def test_frames_are_counted_by_what_became_of_them(url: str):
    with session(url) as socket:
        found = Scraped(url)
        assert found.value("casa_live_sessions") == found.value("casa_live_connections") == 1
        assert found.value("casa_engine_streams") == 1
        for number, data in enumerate((picture("red"), b"no picture", picture("blue"), b"nor this")):
            socket.send(binary_frame(number / 2, data))
            socket.recv(timeout=5)
        socket.send(json.dumps({"type": "session.prompt", "query": "what now"}))
        assert json.loads(socket.recv(timeout=5))["type"] == "answer"
        socket.send(json.dumps({"type": "session.end"}))
        assert json.loads(socket.recv(timeout=5))["type"] == "session.ended"
    until(lambda: Scraped(url).value("casa_live_connections") == 0)
    found = Scraped(url)
    assert found.value("casa_frames_total", outcome="captioned") == 2
    assert found.value("casa_frames_total", outcome="refused") == 2
    assert found.value("casa_captions_on_time_total") == 2
    assert found.value("casa_caption_late_seconds_bucket", le="0.0") == 2
    assert found.value("casa_caption_seconds_count") == 2
    assert found.value("casa_live_prompt_seconds_count") == 1
    assert found.value("casa_generated_tokens_total", work="caption") == 6
    assert found.value("casa_generated_tokens_total", work="prompt") == 3
    assert found.value("casa_live_sessions_ended_total", result="closed") == 1
    assert found.value("casa_live_sessions") == 0
    assert found.value("casa_refusals_total", code="invalid_image") == 2


def test_dropped_frames_and_waiting_ones_are_seen():
    with running(FakeEngine(delay_s=0.3), settings_with(limits={"queued_frames": 2})) as url:
        with session(url) as socket:
            for number in range(10):
                socket.send(binary_frame(float(number), picture("red")))
            until(lambda: Scraped(url).value("casa_engine_frames_waiting") >= 1)
            until(lambda: Scraped(url).value("casa_frames_total", outcome="dropped") >= 3)
        until(lambda: Scraped(url).value("casa_live_sessions") == 0)


def test_two_apps_in_one_process_count_for_themselves():
    with running(FakeEngine(), settings_with()) as one, running(FakeEngine(), settings_with()) as other:
        ask(one, "hello")
        assert Scraped(one).value("casa_answers_total", finish_reason="stop") == 1
        assert Scraped(other).value("casa_answers_total", finish_reason="stop") == 0


def test_a_session_that_the_engine_ends_is_counted_as_failed(url: str):
    with session(url, "explode") as socket:
        socket.send(binary_frame(0.0, picture("red")))
        assert json.loads(socket.recv(timeout=5))["error"]["code"] == "internal_error"
    until(lambda: Scraped(url).value("casa_live_sessions_ended_total", result="failed") == 1)
    assert Scraped(url).value("casa_live_sessions") == 0


class MovedSession:
    """Goes on in another engine after each frame: once exactly, then with the loss of two frames."""

    async def push_frame(self, image: FrameImage, timestamp: float) -> None:
        """Nothing is kept."""

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        yield StreamMoved(exact=True)
        yield StreamMoved(exact=False, frames_lost=(0.5, 1.0))

    def close(self) -> None:
        """There is nothing to free."""


def test_moves_are_counted_by_kind_with_the_frames_they_cost():
    metrics = Metrics({"m": "c"})

    async def watched() -> list[Outcome]:
        live = ObservedSession(MovedSession(), metrics)
        for number in range(3):
            await live.push_frame(b"", number / 2)
        outcomes = [outcome async for outcome in live]
        live.close()
        return outcomes

    assert len(asyncio.run(watched())) == 2
    found = samples(metrics.render(None))
    for name, labels, value in (
        ("casa_session_moves_total", {"kind": "exact"}, 1),
        ("casa_session_moves_total", {"kind": "approximate"}, 1),
        ("casa_frames_total", {"outcome": "lost"}, 2),
        ("casa_frames_total", {"outcome": "captioned"}, 0),
    ):
        assert found[name, frozenset(labels.items())] == value


class StuckEngine(FakeEngine):
    """Its step never ends while ``stuck`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def step(self) -> list:
        self.go_on.wait(20)
        return super().step()


def test_the_metrics_come_while_the_engine_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve.observe.route.LOAD_WITHIN_S", 0.1)
    engine = StuckEngine()
    with running(engine, settings_with()) as url:
        assert Scraped(url).value("casa_engine_up") == 1
        asked = threading.Thread(target=ask, args=(url, "hello"))
        asked.start()
        until(lambda: Scraped(url).value("casa_engine_up") == 0)
        assert "casa_engine_kv_tokens" not in Scraped(url).text
        engine.go_on.set()
        asked.join()
        assert Scraped(url).value("casa_engine_up") == 1


def test_texts_of_several_processes_become_one_with_their_names_as_a_label():
    texts = {}
    for number, name in enumerate(("ingress-1", "ingress-2")):
        metrics = Metrics({"m": "c"})
        metrics.frames.labels("captioned").inc(number + 1)
        metrics.late_seconds.observe(0.3)
        texts[name] = metrics.render(LoadSnapshot(slots=4))
    text = merged(texts)
    found = samples(text)
    for number, name in enumerate(texts):
        labels = frozenset({("outcome", "captioned"), ("process", name)})
        assert found["casa_frames_total", labels] == number + 1
        assert found["casa_engine_slots", frozenset({("process", name)})] == 4
        bucket = frozenset({("le", "0.5"), ("process", name)})
        assert found["casa_caption_late_seconds_bucket", bucket] == 1
    declared = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(declared) == len(set(declared)), "a family is declared once"
    assert "_created" not in text


def test_names_follow_prometheuss_conventions():
    metrics = Metrics({"m": "c"})
    for family in [*metrics.registry.collect(), *engine_families(LoadSnapshot(slots=1))]:
        if family.name.startswith(("process_", "python_")):
            continue
        assert re.fullmatch(r"casa_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_milliseconds", "_percent"))
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
