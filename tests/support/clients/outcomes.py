"""What a call comes to, and how it stands in an HTTP answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class Outcome:
    """What a call comes to."""

    def agrees(self, other: Outcome) -> bool:
        """Whether another one that may hide some of it is this one."""
        shown = {name: value for name, value in vars(other).items() if value is not None}
        return type(self) is type(other) and vars(self) == {**vars(self), **shown}


@dataclass(frozen=True)
class Answered(Outcome):
    """An answer, or as much of it as a client shows: `None` is what it does not show.

    Attributes:
        texts: Those of all choices, or the ids of the listed models.
        tokens: `usage.completion_tokens`; 0 where no usage is sent.
        logprobs: The first choice's tokens, with how many likely ones stand beside each.
    """

    texts: tuple[str, ...]
    finish: str | None = "stop"
    tokens: int | None = None
    logprobs: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True)
class Refused(Outcome):
    """A refusal by name."""

    status: int | None
    code: str | None
    param: str | None


class InexpressibleError(Exception):
    """A client has no way to make a call: nothing is sent."""


def said(text: str, *more: str, finish: str = "stop") -> Answered:
    """The answers that a call gets, with the number of their words as usage."""
    texts = (text, *more)
    return Answered(texts, finish, sum(len(one.split(" ")) for one in texts))


def no(param: str | None, code: str = "invalid_value", status: int = 400) -> Refused:
    """A refusal of a field."""
    return Refused(status, code, param)


def outcome_of(status: int, text: str) -> Outcome:
    """The whole outcome that an HTTP answer holds, plain or as server-sent events."""
    if text.startswith("data: "):
        lines = [line[6:] for line in text.split("\n\n") if line]
        assert lines[-1] == "[DONE]", lines[-1]
        return _streamed([json.loads(line) for line in lines[:-1]])
    answer = json.loads(text)
    if status != 200:
        return Refused(status, answer["error"]["code"], answer["error"]["param"])
    if answer["object"] in ("list", "model"):
        models = answer["data"] if answer["object"] == "list" else [answer]
        return Answered(tuple(model["id"] for model in models), None)
    texts = tuple(choice["message"]["content"] for choice in answer["choices"])
    [finish] = {choice["finish_reason"] for choice in answer["choices"]}
    return Answered(texts, finish, answer["usage"]["completion_tokens"], logprobs_of(answer["choices"][:1]))


def _streamed(chunks: list[dict[str, Any]]) -> Answered:
    texts: dict[int, str] = {}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for choice in choices:
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
    [finish] = {choice["finish_reason"] for choice in choices} - {None}
    [tokens] = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")] or [0]
    return Answered(tuple(texts[index] for index in sorted(texts)), finish, tokens, logprobs_of(choices))


def logprobs_of(choices: list[dict[str, Any]]) -> tuple[tuple[str, int], ...] | None:
    """The tokens of some choices or of one's pieces, with how many likely ones stand beside each."""
    given = [choice["logprobs"]["content"] for choice in choices if choice.get("logprobs")]
    return tuple((one["token"], len(one["top_logprobs"])) for content in given for one in content) or None
