"""Calls of one request to other deployments, each under an id of its own."""

from __future__ import annotations

import uuid
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from ray.serve import context as serve_context


def call_apart(method: Any, *arguments: object) -> Any:
    """Call a deployment's method; returns what ``method.remote`` does.

    Ray's router finds waiting calls by the id of the request that makes them. Of two that one request makes
    at once, as for two choices or two uploaded pictures, it forgets one: it is never sent, and never ends.
    """

    def call() -> Any:
        if (current := serve_context._serve_request_context.get()) is not None:
            serve_context._serve_request_context.set(replace(current, _internal_request_id=uuid.uuid4().hex))
        return method.remote(*arguments)

    return copy_context().run(call)
