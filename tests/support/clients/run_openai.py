"""The calls as the official `openai` client makes them, blocking and asynchronous."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import openai
from openai.resources.chat.completions import Completions

from tests.support.clients.calls import CHAT, MODEL, Call
from tests.support.clients.outcomes import Answered, Outcome, Refused

KNOWN = frozenset(inspect.signature(Completions.create).parameters)
"""Fields that the client knows; others go into `extra_body`."""


def ask(url: str, call: Call) -> Outcome:
    """A call by the blocking client."""
    http_client = openai.DefaultHttpxClient(verify=False)  # loading certificates takes longer than a call
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="unused", max_retries=0, http_client=http_client
    ) as client:
        try:
            if call.path != CHAT:
                return models(client, call.path)
            messages: list[Any] = list(call.messages)
            answer = client.chat.completions.create(messages=messages, **arguments(call))
            if call.then:
                messages += [answer.choices[0].message, *call.then]
                answer = client.chat.completions.create(messages=messages, **arguments(call))
            return outcome(list(answer) if isinstance(answer, openai.Stream) else answer)
        except openai.APIStatusError as error:
            return refused(error)


def ask_async(url: str, call: Call) -> Outcome:
    """A call by the asynchronous client."""

    async def run() -> Outcome:
        http_client = openai.DefaultAsyncHttpxClient(verify=False)
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="unused", max_retries=0, http_client=http_client
        ) as client:
            try:
                if call.path != CHAT:
                    listed = client.models
                    if call.path == "/v1/models":
                        return Answered(tuple([model.id async for model in listed.list()]), None)
                    return Answered(((await listed.retrieve(MODEL)).id,), None)
                messages: list[Any] = list(call.messages)
                answer = await client.chat.completions.create(messages=messages, **arguments(call))
                if call.then:
                    messages += [answer.choices[0].message, *call.then]
                    answer = await client.chat.completions.create(messages=messages, **arguments(call))
                if isinstance(answer, openai.AsyncStream):
                    return outcome([chunk async for chunk in answer])
                return outcome(answer)
            except openai.APIStatusError as error:
                return refused(error)

    return asyncio.run(run())


def models(client: openai.OpenAI, path: str) -> Answered:
    """The listed models, or one."""
    if path == "/v1/models":
        return Answered(tuple(model.id for model in client.models.list()), None)
    return Answered((client.models.retrieve(MODEL).id,), None)


def arguments(call: Call) -> dict[str, Any]:
    """A call's fields as the client's own arguments."""
    known = {name: value for name, value in call.fields.items() if name in KNOWN}
    extra = {name: value for name, value in call.fields.items() if name not in KNOWN}
    return {**known, **({"extra_body": extra} if extra else {})}


def outcome(answer: Any) -> Answered:
    """What the client's objects hold, a stream's as a list."""
    texts: dict[int, str] = {}
    tokens, finish, logprobs = 0, None, []
    for piece in answer if isinstance(answer, list) else [answer]:
        tokens = piece.usage.completion_tokens if getattr(piece, "usage", None) else tokens
        for choice in piece.choices:
            words = choice.delta if isinstance(answer, list) else choice.message
            texts[choice.index] = texts.get(choice.index, "") + (words.content or "")
            finish = choice.finish_reason or finish
            if getattr(choice, "logprobs", None) and choice.logprobs.content:
                logprobs += [(one.token, len(one.top_logprobs or [])) for one in choice.logprobs.content]
    return Answered(tuple(texts[index] for index in sorted(texts)), finish, tokens, tuple(logprobs) or None)


def refused(error: openai.APIStatusError) -> Refused:
    """What the client's exception holds."""
    return Refused(error.status_code, error.code, error.param)
