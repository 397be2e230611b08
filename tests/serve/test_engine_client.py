"""The real engine behind the API: what is served is what it says offline, batched and interleaved too.

A small checkpoint with random weights: its words mean nothing, but they depend on every pixel and token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from websockets.sync.client import connect

from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.types import Image, Sample, Text
from serve.loading import engine_settings
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.fakes import COLOURS
from tests.support.serve.server import MODEL, binary_frame, picture, question, running, settings_with

TOKENS = 12
QUESTIONS = {colour: f"what colour is shape {number}" for number, colour in enumerate(COLOURS)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"{text} {colour}" for colour, text in QUESTIONS.items()]
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), texts)


@pytest.fixture(scope="module")
def offline(checkpoint: Path) -> Engine:
    return Engine.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    settings = settings_with(max_new_tokens=TOKENS)
    engine = Engine.from_pretrained(checkpoint, device="cpu", settings=engine_settings(settings.limits))
    with running(engine, settings) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def alone(engine: Engine, colour: str) -> str:
    parts = (Image(data=picture(colour)), Text(role="user", text=QUESTIONS[colour]))
    sample = Sample(source="test", sample_id=colour, parts=parts)
    request = GenerationRequest(sample=sample, sampling=SamplingParams(max_new_tokens=TOKENS))
    return engine.generate([request])[0].text


def test_served_answers_are_the_offline_ones_plain_streamed_and_batched(
    offline: Engine, client: openai.OpenAI
):
    expected = {colour: alone(offline, colour) for colour in COLOURS}
    assert len(set(expected.values())) > 1, "the answers depend on what was asked"

    def ask(colour: str, **options: Any) -> Any:
        messages = question(QUESTIONS[colour], picture(colour))
        return client.chat.completions.create(model=MODEL, messages=messages, **options)

    with ThreadPoolExecutor(len(COLOURS)) as pool:
        answers = dict(zip(COLOURS, pool.map(ask, COLOURS), strict=True))
    assert {colour: answer.choices[0].message.content for colour, answer in answers.items()} == expected
    for colour, answer in answers.items():
        chunks = list(ask(colour, stream=True, stream_options={"include_usage": True}))
        words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(words) == expected[colour]
        assert chunks[-1].usage == answer.usage
        assert answer.usage.prompt_tokens_details.image_tokens > 0


def test_a_conversation_beyond_the_models_context_is_the_clients_mistake(client: openai.OpenAI):
    messages = [{"role": "user", "content": "what colour is it " * 100}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="do not fit the model's context"):
            client.chat.completions.create(model=MODEL, messages=messages, stream=stream)


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI):
    def sampled(seed: int) -> str | None:
        messages = question(QUESTIONS["red"], picture("red"))
        options: dict[str, Any] = {"temperature": 1.5, "seed": seed}
        return (
            client.chat.completions.create(model=MODEL, messages=messages, **options)
            .choices[0]
            .message.content
        )

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(6)}) > 1


def test_live_captions_are_the_offline_ones_alone_and_interleaved(offline: Engine, url: str):
    colours = list(COLOURS)

    def frames(query: str) -> list[bytes]:
        first = len(query) % len(colours)
        return [picture(colours[(first + number) % len(colours)]) for number in range(8)]

    def said_offline(query: str) -> list[tuple[float, str, int]]:
        session = offline.open_session(query, max_tokens_per_frame=4)
        events = [session.push_frame(data, number / 2) for number, data in enumerate(frames(query))]
        session.close()
        return [(event.timestamp, event.text, event.text_tokens) for event in events]

    def said_live(query: str) -> list[tuple[float, str, int]]:
        with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as socket:
            start = {"type": "session.start", "query": query, "max_tokens_per_frame": 4}
            socket.send(json.dumps(start))
            assert json.loads(socket.recv(timeout=10))["type"] == "session.started"
            said = []
            for number, data in enumerate(frames(query)):
                socket.send(binary_frame(number / 2, data))
                event = json.loads(socket.recv(timeout=10))
                said.append((event["timestamp"], event["text"], event["text_tokens"]))
            return said

    queries = ["what colour", "shape", "", "is 3"]
    expected = [said_offline(query) for query in queries]
    assert any(text for said in expected for _, text, _ in said)
    with ThreadPoolExecutor(len(queries)) as pool:
        assert list(pool.map(said_live, queries)) == expected
