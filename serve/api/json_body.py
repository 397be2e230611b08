"""JSON of clients, read strictly: what has two meanings or would take long to read is refused by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from infra.endpoint_settings import Limits
from serve.api.errors import ApiError

DEEPEST = 64
"""Objects and lists inside one another. A chat call has five."""


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body, parsed; errors as :func:`parse_json`."""
        return parse_json(await self.body(), self.app.state.limits)


class JsonRoute(APIRoute):
    """A route whose JSON body is read with :func:`parse_json`; the app's state has the `limits`."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler of the base class, given a request that parses strictly."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


def parse_json(data: str | bytes, limits: Limits) -> Any:
    """A client's JSON text as Python values.

    Raises:
        ApiError: 400 for what is no JSON, for NaN and infinities, a name that stands twice in an object,
            numbers of thousands of digits, deep nesting, and more objects and lists than `limits` admit.
    """
    opening = (b"{", b"[", b",") if isinstance(data, bytes) else ("{", "[", ",")
    if sum(map(data.count, opening)) > limits.text_characters + 10 * limits.json_containers:  # type: ignore[arg-type]
        raise _too_much(limits)
    _check_long(data, limits)
    try:
        value = json.loads(data, parse_constant=_no_number, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise _invalid("it is not encoded as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg}, at character {error.pos}") from None
    except ValueError:  # Python's own bound on the digits of an integer
        raise _invalid("a number has too many digits") from None
    _check_size(value, limits)
    return value


def _check_long(data: str | bytes, limits: Limits) -> None:
    """Refuse a string longer than any text and any frame may be, unless it is a picture's data URI, before
    megabytes of it are parsed. A character has six bytes at most; a quotation mark inside may cut a string,
    and it is then parsed and counted.
    """
    longest = max(6 * limits.text_characters, 2 * limits.frame_bytes)
    if len(data) <= longest:
        return
    pieces = data.split(b'"') if isinstance(data, bytes) else data.encode("utf-8", "replace").split(b'"')
    if any(len(piece) > longest and piece[:5].lower() != b"data:" for piece in pieces):
        raise ApiError(
            400,
            f"A text has more than {limits.text_characters} characters. Send less text.",
            code="text_too_long",
        )


def _check_size(value: Any, limits: Limits) -> None:
    """Walk through all objects and lists, level by level."""
    level, depth, count = [value], 0, 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        count += len(level)
        if depth > DEEPEST:
            raise _too_deep()
        if count > limits.json_containers:
            raise _too_much(limits)
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _), *_] = Counter(name for name, _ in pairs).most_common(1)
        message = f"The name {twice[:80]!r} stands twice in an object."
        raise ApiError(400, message, code="invalid_json", param=twice[:80])
    return found


def _no_number(name: str) -> Any:
    raise _invalid(f"{name} is no JSON number")


def _invalid(reason: str) -> ApiError:
    return ApiError(400, f"This is not valid JSON: {reason}.", code="invalid_json")


def _too_deep() -> ApiError:
    return _invalid(f"objects and lists are nested more than {DEEPEST} levels deep")


def _too_much(limits: Limits) -> ApiError:
    return _invalid(f"it has more than {limits.json_containers} objects and lists")
