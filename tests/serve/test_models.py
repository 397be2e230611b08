"""Several checkpoints behind one address: each answers as it does alone, and is listed with its limits."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from websockets.sync.client import connect

from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.model import CasaForConditionalGeneration
from casa_core.types import Image, Sample, Text
from serve.api.settings import Checkpoint, ServeSettings
from serve.loading import load_pool
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.fakes import COLOURS
from tests.support.serve.server import binary_frame, picture, question, running, settings_with, write_clip

TOKENS, OWN, OTHER, BROKEN = 8, "one", "two", "broken"
CONTEXTS = {OWN: 256, OTHER: 128}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    folders = {
        name: write_checkpoint(
            tmp_path_factory.mktemp(name), ["what colour is it"], context=context, seed=context
        )
        for name, context in CONTEXTS.items()
    }
    broken = tmp_path_factory.mktemp(BROKEN)
    (broken / "config.json").write_text("{")
    return settings_with(
        model_folder=folders[OWN],
        model_name=OWN,
        models={
            OTHER: Checkpoint(folder=str(folders[OTHER]), fingerprint="o" * 16),
            BROKEN: Checkpoint(folder=str(broken)),
        },
        models_per_engine=1,
        max_new_tokens=TOKENS,
        max_tokens_per_frame=4,
    )


@pytest.fixture(scope="module")
def offline(settings: ServeSettings) -> dict[str, Engine]:
    return {
        name: Engine.from_pretrained(settings.checkpoints[name].folder, device="cpu") for name in CONTEXTS
    }


@pytest.fixture(scope="module")
def url(settings: ServeSettings) -> Iterator[str]:
    with ExitStack() as copies, running(load_pool(settings, copies), settings) as address:
        yield address


def alone(engine: Engine, colour: str) -> str:
    parts = (Image(data=picture(colour)), Text(role="user", text="what colour"))
    sample = Sample(source="test", sample_id=colour, parts=parts)
    request = GenerationRequest(sample=sample, sampling=SamplingParams(max_new_tokens=TOKENS))
    return engine.generate([request])[0].text


def test_all_models_are_listed_each_with_its_own_limits(url: str):
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [OWN, OTHER, BROKEN]
    assert [model["max_model_len"] for model in listed] == [*CONTEXTS.values(), None]
    assert httpx.get(f"{url}/v1/models/{OTHER}").json() == listed[1]
    named = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["ChatCompletionRequest"]
    assert named["properties"]["model"]["enum"] == [OWN, OTHER, BROKEN]
    assert f'casa_info{{checkpoint="{"o" * 16}",model="{OTHER}"}} 1.0' in httpx.get(f"{url}/metrics").text


def test_each_model_answers_as_its_checkpoint_does_alone(url: str, offline: dict[str, Engine]):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    expected = {(name, colour): alone(offline[name], colour) for name in CONTEXTS for colour in COLOURS}
    assert len(set(expected.values())) > len(COLOURS), "the answers depend on the model"
    for (name, colour), right in expected.items():  # of which one is held at a time
        messages: Any = question("what colour", picture(colour))
        plain = client.chat.completions.create(model=name, messages=messages)
        assert (plain.model, plain.choices[0].message.content) == (name, right)
        assert plain.system_fingerprint == ("c" if name == OWN else "o") * 16
        chunks = client.chat.completions.create(model=name, messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == right


def test_an_answer_is_the_same_while_a_checkpoint_of_another_type_is_loaded(
    settings: ServeSettings, offline: dict[str, Engine]
):
    engine = Engine.from_pretrained(settings.checkpoints[OWN].folder, device="cpu")
    torch.set_default_dtype(torch.bfloat16)  # as transformers does meanwhile, for all threads
    try:
        answer = alone(engine, "red")
    finally:
        torch.set_default_dtype(torch.float32)
    assert answer == alone(offline[OWN], "red")


def captions_alone(engine: Engine, frames: list[bytes]) -> list[str]:
    session = engine.open_session("", max_tokens_per_frame=4)
    said = [session.push_frame(frame, float(time)).text for time, frame in enumerate(frames)]
    session.close()
    return said


@pytest.mark.parametrize("name", CONTEXTS)
def test_live_sessions_captions_and_rest_are_of_the_model_that_is_named(
    url: str, offline: dict[str, Engine], name: str, tmp_path: Path
):
    frames = [picture(colour) for colour in COLOURS]
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as socket:
        socket.send(json.dumps({"type": "session.start", "model": name}))
        assert json.loads(socket.recv(timeout=10))["model"] == name
        said = []
        for time, frame in enumerate(frames):
            socket.send(binary_frame(time, frame))
            said.append(json.loads(socket.recv(timeout=10))["text"])
        assert said == captions_alone(offline[name], frames)
    opened = httpx.post(f"{url}/v1/streaming/sessions", json={"model": name})
    assert opened.json()["model"] == name
    httpx.delete(f"{url}{opened.headers['location']}")
    clip = write_clip(tmp_path / "clip.mp4", ["red", "blue"]).read_bytes()
    form = {"model": name, "response_format": "sse"}
    events = httpx.post(f"{url}/v1/captions", data=form, files={"file": clip}).text
    assert f'"model":"{name}"' in events.replace('": "', '":"')


def test_a_model_that_is_not_served_is_refused_with_those_that_are(url: str):
    calls = [
        httpx.get(f"{url}/v1/models/three"),
        httpx.post(f"{url}/v1/chat/completions", json={"model": "three", "messages": question("hi")}),
        httpx.post(f"{url}/v1/streaming/sessions", json={"model": "three"}),
    ]
    for answer in calls:
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "'one', 'two', 'broken'" in answer.json()["error"]["message"]


def test_a_checkpoint_that_cannot_be_loaded_is_its_callers_503_and_no_one_elses(
    url: str, settings: ServeSettings
):
    for stream in (False, True):
        body = {"model": BROKEN, "messages": question("hi"), "stream": stream}
        refused = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
        assert settings.checkpoints[BROKEN].folder not in refused.text
        assert "'broken' cannot be loaded" in refused.json()["error"]["message"]
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as socket:
        socket.send(json.dumps({"type": "session.start", "model": BROKEN}))
        error = json.loads(socket.recv(timeout=10))
        assert (error["fatal"], error["error"]["code"]) == (True, "model_unavailable")
    body = {"model": OWN, "messages": question("hi")}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def test_a_model_that_made_room_is_freed_with_all_that_held_it(url: str, monkeypatch: pytest.MonkeyPatch):
    models: weakref.WeakSet[Any] = weakref.WeakSet()
    load = Engine.from_pretrained.__func__  # type: ignore[attr-defined]

    def noted(cls: Any, folder: Path, **options: Any) -> Engine:
        engine = load(cls, folder, **options)
        models.add(engine.model)
        return engine

    monkeypatch.setattr(Engine, "from_pretrained", classmethod(noted))
    for name in (OWN, OTHER, OWN, OTHER, OWN):
        with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as socket:
            socket.send(json.dumps({"type": "session.start", "model": name}))
            socket.recv(timeout=10)
            socket.send(binary_frame(0.0, picture("red")))
            assert json.loads(socket.recv(timeout=10))["type"] == "caption"
            socket.send(json.dumps({"type": "session.end"}))
            assert json.loads(socket.recv(timeout=10))["type"] == "session.ended"
    assert [type(model) for model in models] == [CasaForConditionalGeneration], "though sessions are kept"
