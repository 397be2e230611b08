"""The calls as LangChain's `ChatOpenAI` makes them against a `base_url`."""

from __future__ import annotations

from typing import Any

import openai
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_openai import ChatOpenAI

from tests.support.clients.calls import CHAT, Call
from tests.support.clients.outcomes import Answered, InexpressibleError, Outcome
from tests.support.clients.run_openai import refused

OWN = frozenset(
    (
        *("model", "temperature", "top_p", "n", "seed", "stop", "max_tokens", "max_completion_tokens"),
        *("logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "logit_bias"),
    )
)
"""Fields that `ChatOpenAI` is made with."""
WITH_CALL = frozenset(("tools", "tool_choice", "response_format", "user"))
"""Fields that are bound to a call."""


def ask(url: str, call: Call) -> Outcome:
    """A call, and after it the one that sends its `AIMessage` back."""
    if call.path != CHAT:
        raise InexpressibleError("it lists no models")
    try:
        messages = convert_to_messages(list(call.messages))
    except (ValueError, NotImplementedError) as error:
        raise InexpressibleError(str(error).splitlines()[0]) from error
    try:
        answers = _answers(url, call, messages)
        if call.then:
            answers = _answers(url, call, [*messages, answers[0], *convert_to_messages(list(call.then))])
    except openai.APIStatusError as error:
        return refused(error)
    return _outcome(answers)


def _answers(url: str, call: Call, messages: list[BaseMessage]) -> list[AIMessage]:
    fields = call.fields
    streamed, options = fields.pop("stream", None), fields.pop("stream_options", None) or {}
    own = {name: fields.pop(name) for name in OWN & fields.keys()}
    bound = {name: fields.pop(name) for name in WITH_CALL & fields.keys() if fields[name] is not None}
    if streamed and own.get("n", 1) > 1:
        raise InexpressibleError("a streamed message is one answer")
    model = ChatOpenAI(
        base_url=f"{url}/v1", api_key="unused", max_retries=0, extra_body=fields or None, **own
    )
    if streamed:
        usage = {"stream_usage": True} if options.get("include_usage") else {}
        pieces: list[Any] = list(model.stream(messages, **bound, **usage))
        whole: AIMessageChunk = pieces[0]
        for piece in pieces[1:]:
            whole += piece
        return [whole]
    return [one.message for one in model.generate([messages], **bound).generations[0]]


def _outcome(answers: list[AIMessage]) -> Answered:
    first = answers[0].response_metadata
    used = answers[0].usage_metadata
    given = (first.get("logprobs") or {}).get("content")
    # With several answers, each message has the usage of the call.
    return Answered(
        tuple(str(answer.content) for answer in answers),
        first.get("finish_reason"),
        used["output_tokens"] if used else 0,
        tuple((one["token"], len(one["top_logprobs"])) for one in given) if given else None,
    )
