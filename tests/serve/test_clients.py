"""What clients of OpenAI's API, of vLLM and of harnesses send is answered as they expect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, picture, question, running, settings_with

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with(max_new_tokens=8)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def post(url: str, messages: list[Any], **body: Any) -> dict[str, Any]:
    """The answer to a call, which must succeed."""
    response = httpx.post(f"{url}{CHAT}", json={"model": MODEL, "messages": messages, **body})
    assert response.status_code == 200, response.text
    return response.json()


def first(answer: dict[str, Any]) -> str:
    """The words of the first choice."""
    return answer["choices"][0]["message"]["content"]


def test_an_answers_own_message_may_be_sent_back(client: openai.OpenAI):
    messages: list[Any] = question("what is it", picture("red"))
    answer = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message
    messages += [answer, {"role": "user", "content": "and now"}]
    assert client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content


@pytest.mark.parametrize(
    "extras",
    [
        {"refusal": None, "tool_calls": None, "function_call": None, "audio": None, "annotations": []},
        {"reasoning_content": None, "provider_specific_fields": {"refusal": None}, "thinking_blocks": []},
        {"tool_calls": [], "name": None, "reasoning": "", "images": []},
    ],
    ids=["openai", "litellm", "vllm"],
)
def test_what_holds_nothing_changes_nothing(url: str, extras: dict[str, Any]):
    history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two", **extras}]
    assert first(post(url, [*history, {"role": "user", "content": "three"}])) == "three"


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}], ids=["null", "empty", "absent"])
def test_an_assistant_may_have_said_nothing(url: str, content: dict[str, Any]):
    history = [{"role": "user", "content": "one"}, {"role": "assistant", **content}]
    assert first(post(url, [*history, {"role": "user", "content": "three"}])) == "three"


@pytest.mark.parametrize("content", ["", " ", [], [{"type": "text", "text": ""}]])
def test_a_system_message_may_say_nothing(url: str, content: Any):
    assert (
        first(post(url, [{"role": "system", "content": content}, {"role": "user", "content": "one"}]))
        == "one"
    )


OPTIONAL = (
    *("stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed"),
    *("stop", "n", "top_k", "min_p", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs"),
    *("logit_bias", "tools", "tool_choice", "response_format", "user", "metadata", "guided_json"),
)


def test_null_is_absent_one_by_one_and_all_at_once(url: str):
    messages = [{"role": "user", "content": "hello", "name": None}]
    for nulls in [*([name] for name in OPTIONAL), OPTIONAL]:
        assert first(post(url, messages, **dict.fromkeys(nulls))) == "hello", nulls
    image = question("x", picture("red"))
    image[0]["content"][0]["image_url"]["detail"] = None
    image[0]["content"][0]["text"] = None
    assert first(post(url, image)) == "red x"
    streamed = {"stream": True, "stream_options": {"include_usage": None}}
    response = httpx.post(f"{url}{CHAT}", json={"model": MODEL, "messages": messages, **streamed})
    assert response.status_code == 200
    assert '"usage"' not in response.text


NEUTRAL = {
    "best_of": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "min_tokens": 0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "echo": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "stop_token_ids": [],
    "bad_words": [],
    "chat_template_kwargs": {},
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "logprobs": False,
    "priority": 0,
}


def test_what_vllms_clients_send_is_accepted_where_it_changes_nothing(url: str):
    messages = [{"role": "user", "content": "hello"}]
    assert first(post(url, messages, **NEUTRAL)) == "hello"


@pytest.mark.parametrize(
    "limit", [{"max_tokens": 1024}, {"max_completion_tokens": 9}, {"max_tokens": -1}, {}]
)
def test_a_limit_beyond_the_endpoints_is_the_endpoints(url: str, limit: dict[str, int]):
    answer = post(url, [{"role": "user", "content": "a b c d e f g h i j"}], **limit)
    assert first(answer) == "a b c d e f g h"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    "roles",
    [
        ("user", "system"),
        ("user", "developer"),
        ("system", "user", "assistant", "system", "user"),
        ("user", "user"),
    ],
)
def test_system_messages_may_stand_anywhere(url: str, roles: tuple[str, ...]):
    messages = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    assert first(post(url, messages))


def test_sampling_that_vllm_knows_reaches_the_engine():
    engine = FakeEngine()
    with running(engine, settings_with()) as url:
        post(url, [{"role": "user", "content": "a"}], temperature=0.5, top_p=0, top_k=5, min_p=0.1, seed=3)
        post(url, [{"role": "user", "content": "a"}], top_k=-1)
    first, second = engine.sampling
    assert (first.top_p, first.top_k, first.min_p, first.seed) == (0.0, 5, 0.1, 3)
    assert second.top_k == 0


def test_several_answers_have_seeds_one_after_another_and_count_their_prompt_once(url: str):
    messages = [{"role": "user", "content": "a"}]
    one = post(url, messages, temperature=1, seed=7)
    three = post(url, messages, temperature=1, seed=7, n=3)
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in three["choices"]] == [
        "a seed=7",
        "a seed=8",
        "a seed=9",
    ]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]


def test_several_answers_are_streamed_side_by_side(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "a"}],
        temperature=1,
        seed=7,
        n=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    words: dict[int, str] = {}
    ends: dict[int, str | None] = {}
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            words[choice.index] = words.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert words == {0: "a seed=7", 1: "a seed=8", 2: "a seed=9"}
    assert set(ends.values()) == {"stop"}
    assert usage is not None
    assert usage.completion_tokens == 6


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_one_of_several_answers_that_is_refused_ends_them_all(stream: bool):
    engine = FakeEngine()
    with running(engine, settings_with()) as url:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "too long"}],
            "n": 3,
            "stream": stream,
        }
        response = httpx.post(f"{url}{CHAT}", json=body)
        assert response.status_code == 400
        assert json.loads(response.text)["error"]["code"] == "invalid_request"
        assert not engine.open_answers


def test_log_probabilities_are_given_token_by_token_plain_and_streamed(client: openai.OpenAI):
    call: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "caf\u00e9 b"}],
        "logprobs": True,
        "top_logprobs": 2,
    }
    plain = client.chat.completions.create(**call).choices[0].logprobs
    assert plain is not None
    assert plain.content is not None
    assert [(one.token, one.logprob) for one in plain.content] == [("caf\u00e9", 0.0), ("b", -1.0)]
    assert plain.content[0].bytes == list("caf\u00e9".encode())
    assert [one.token for one in plain.content[1].top_logprobs] == ["b0", "b1"]
    streamed = [
        one
        for chunk in client.chat.completions.create(**call, stream=True)
        for choice in chunk.choices
        if choice.logprobs and choice.logprobs.content
        for one in choice.logprobs.content
    ]
    assert [one.model_dump() for one in streamed] == [one.model_dump() for one in plain.content]
    without = client.chat.completions.create(**{**call, "logprobs": False, "top_logprobs": None})
    assert without.choices[0].logprobs is None


def test_likeliest_tokens_without_log_probabilities_are_refused(url: str):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}
    response = httpx.post(f"{url}{CHAT}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "top_logprobs")


@pytest.mark.parametrize("field", ["content", "text", "url"])
def test_half_a_character_is_refused_with_its_place(url: str, field: str):
    half = "\\ud83d"
    content = {
        "content": f'"x {half}"',
        "text": f'[{{"type": "text", "text": "{half}"}}]',
        "url": f'[{{"type": "image_url", "image_url": {{"url": "{half}"}}}}]',
    }[field]
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": {content}}}]}}'
    response = httpx.post(f"{url}{CHAT}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("messages[0].content")
