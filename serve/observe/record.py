"""The request that is being answered: what its log line and its metrics are made of."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One HTTP request or WebSocket connection while it is open. It never holds what was asked or answered.

    Attributes:
        state: The connection's ``scope["state"]``, in which the middleware keep its id and its key's name.
        started: When it came, by ``time.monotonic``.
        codes: How often it, or a message of the connection, was refused, by the refusal's slug.
        prompt_tokens, image_tokens, tokens: Read for it, and generated.
    """

    state: MutableMapping[str, Any]
    started: float = field(default_factory=time.monotonic)
    codes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    image_tokens: int = 0
    tokens: int = 0

    @property
    def id(self) -> str:
        """Its id; empty before the middleware has given it one."""
        return str(self.state.get("request_id", ""))

    @property
    def key(self) -> str:
        """Name of the API key it came with; empty for none."""
        return str(self.state.get("key", ""))


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("casa_request", default=None)


def begin_request(state: MutableMapping[str, Any]) -> RequestRecord:
    """The record of a new request; the tasks that it starts see it as :func:`current_request`."""
    record = RequestRecord(state=state)
    _CURRENT.set(record)
    return record


def current_request() -> RequestRecord | None:
    """The request that the caller works for; ``None`` outside of one."""
    return _CURRENT.get()


def note_refusal(code: str) -> None:
    """Note by what the current request, or a message of the current connection, was refused."""
    if (record := _CURRENT.get()) is not None:
        record.codes[code] += 1
