"""The `openai` client talks to a real HTTP server and gets OpenAI's behaviour back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.support.serve.fakes import IMAGE_TOKENS, FakeEngine
from tests.support.serve.server import MODEL, image_part, picture, question, running, settings_with

Served = tuple[str, FakeEngine]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine = FakeEngine()
    with running(engine, settings_with(max_new_tokens=8)) as url:
        yield url, engine


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key="unused", max_retries=0)


def test_a_picture_and_a_question_get_an_answer_with_its_token_account(client: openai.OpenAI):
    answer = client.chat.completions.create(model=MODEL, messages=question("what is this", picture("red")))
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "red what is this"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 3  # text alone
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == 7
    assert answer.usage.prompt_tokens_details.image_tokens == IMAGE_TOKENS


def test_a_stream_carries_the_same_words_as_the_plain_answer(client: openai.OpenAI):
    messages = question("what is this", picture("blue"))
    plain = client.chat.completions.create(model=MODEL, messages=messages)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(words) == plain.choices[0].message.content
    assert sum(word != "" for word in words) == 4, "one chunk a token"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage


def test_usage_is_left_out_of_a_stream_that_did_not_ask_for_it(client: openai.OpenAI):
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello there"}], stream=True
        )
    )
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


def test_the_stream_is_plain_server_sent_events_that_end_with_done(served: Served):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "one two"}], "stream": True}
    with httpx.stream("POST", f"{served[0]}/v1/chat/completions", json=body) as response:
        text = response.read().decode()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert text.endswith("data: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in text.splitlines() if line)


def test_several_pictures_over_several_turns_keep_their_order(client: openai.OpenAI):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [image_part(picture("red")), {"type": "text", "text": "this"}]},
        {"role": "assistant", "content": "seen"},
        {
            "role": "user",
            "content": [
                image_part(picture("green")),
                image_part(picture("blue", kind="JPEG")),
                {"type": "text", "text": "and these"},
            ],
        },
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].message.content == "red green blue and these"
    assert answer.usage.prompt_tokens_details.image_tokens == 3 * IMAGE_TOKENS


def test_sampling_settings_reach_the_engine(client: openai.OpenAI):
    def ask(text: str, **settings: object) -> tuple[str | None, str]:
        choice = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], **settings
        ).choices[0]
        return choice.message.content, choice.finish_reason

    assert ask("a b c d", max_tokens=2) == ("a b", "length")
    assert ask("a b c d", max_completion_tokens=3) == ("a b c", "length")
    assert ask("a b c d e f g h i j") == ("a b c d e f g h", "length"), "the deployment's own default"
    assert ask("a b STOP c", stop="STOP") == ("a b", "stop")
    assert ask("a b | c", stop=["STOP", "|"]) == ("a b", "stop")
    assert ask("a", temperature=0.7, seed=11, top_p=0.9) == ("a seed=11", "stop")
    assert ask("a", n=1, user="me", presence_penalty=0.0, response_format={"type": "text"}) == ("a", "stop")


def test_the_model_is_listed_and_found_by_name(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "casa"
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("gpt-4")
    assert refusal.value.code == "model_not_found"


def test_health_names_the_model_and_the_fingerprints(served: Served):
    health = httpx.get(f"{served[0]}/healthz").json()
    assert health["service"] == "casa"
    assert health["model"] == MODEL
    assert health["fingerprint"] == "f" * 16
    assert health["checkpoint"] == "c" * 16
    assert httpx.get(f"{served[0]}/readyz").json() == {"status": "ready", "model": MODEL}


def test_requests_that_arrive_together_are_answered_together_each_with_its_own_answer():
    engine = FakeEngine(delay_s=0.5)  # while it answers the first, the others arrive, also on a busy machine
    with running(engine, settings_with()) as url, ThreadPoolExecutor(12) as pool:

        def ask(number: int) -> str:
            body = {"model": MODEL, "messages": [{"role": "user", "content": f"number {number}"}]}
            response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)
            return response.json()["choices"][0]["message"]["content"]

        assert list(pool.map(ask, range(12))) == [f"number {number}" for number in range(12)]
    assert engine.most_together > 6
    assert engine.steps <= 8, "two words each, and they share their steps"
    assert len(engine.threads) == 1, "every engine call comes from one thread"


def test_a_stream_whose_reader_leaves_stops_generating():
    engine = FakeEngine(delay_s=0.02)
    with running(engine, settings_with(max_new_tokens=500)) as url:
        words = " ".join(["word"] * 400)
        body = {"model": MODEL, "messages": [{"role": "user", "content": words}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 5
        while engine.cancelled == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert engine.cancelled == 1
        assert engine.produced < 100


def test_a_health_check_is_answered_while_the_engine_is_busy():
    engine = FakeEngine(delay_s=1.0)
    with running(engine, settings_with()) as url:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "slow"}]}
        asking = threading.Thread(
            target=httpx.post, args=(f"{url}/v1/chat/completions",), kwargs={"json": body}
        )
        asking.start()
        time.sleep(0.2)
        started = time.monotonic()
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert time.monotonic() - started < 0.5
        asking.join()
