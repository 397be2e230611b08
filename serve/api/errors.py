"""HTTP errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from casa_core.engine.events import Overloaded
from casa_core.errors import CasaError, ConfigError, DataError, MediaError, without_addresses
from serve.api.schemas import UNION_TAG
from serve.calls import ModelUnavailable
from serve.observe.record import note_refusal

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_PATH = re.compile(r"(?<![\w/.:])(?:file://)?(?:/[\w.@+~-]+){2,}/?")


class ApiError(HTTPException):
    """A refusal the client can read and act on.

    Args:
        message: What is wrong and what to do instead.
        code: Short stable slug.
        param: The offending field, for example `messages[0].content[1].image_url.url`.
        kind: OpenAI's error `type`.
    """

    # An HTTPException: FastAPI turns anything else that is raised while it reads a body into a vague 400.

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = INVALID_REQUEST,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status_code=status, detail=message, headers=headers)
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind

    def body(self) -> dict[str, Any]:
        """The JSON object clients receive, over HTTP, inside SSE and on WebSockets alike; its code is noted
        for the request's log line."""
        note_refusal(self.code)
        param = None if self.param is None else writable(self.param)
        error = {"message": writable(self.message), "type": self.kind, "param": param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The whole HTTP answer."""
        return JSONResponse(self.body(), status_code=self.status_code, headers=self.headers)


def writable(text: str) -> str:
    """A client's own text with halves of characters escaped: they can be written into no answer."""
    return text.encode("utf-8", "backslashreplace").decode()


def bad_request(message: str, param: str, code: str = "invalid_value") -> ApiError:
    """400 for a field whose value this endpoint does not accept."""
    return ApiError(400, message, code=code, param=param)


def internal_error(request_id: str) -> ApiError:
    """A 500 that names only the request id, under which the server's log has the details."""
    return ApiError(
        500,
        f"The server failed on this request. Its log has the details under request id {request_id}.",
        code="internal_error",
        kind=SERVER_ERROR,
    )


def too_many(message: str, code: str, retry_after_s: float = 1.0) -> ApiError:
    """429 for what a replica has no room for, with the header that clients wait by."""
    headers = {"retry-after": str(max(1, round(retry_after_s)))}
    return ApiError(429, message, code=code, kind="rate_limit_error", headers=headers)


def check_model(asked: str, served: Iterable[str]) -> None:
    """Refuse the name of a model that is not served here.

    Raises:
        ApiError: 404.
    """
    if asked in (names := tuple(served)):
        return
    listed = ", ".join(map(repr, names))
    message = f"The model {asked!r} does not exist here; this endpoint serves {listed}."
    raise ApiError(404, message, code="model_not_found", param="model")


def invalid_image(error: MediaError, param: str | None = None) -> ApiError:
    """400 for bytes that are not a usable image: what they are, why, the remedy, and the reason's slug."""
    detail = " ".join(filter(None, (error.what, error.why, error.remedy)))
    return ApiError(400, f"{public(detail)} ({error.reason})", code="invalid_image", param=param)


def as_api_error(error: Exception) -> ApiError | None:
    """The error as a refusal of the request, or `None` for a failure of the server (a 500)."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Overloaded):
        return too_many(f"The server is busy. {one_line(error)}", "overloaded", error.retry_after_s)
    if isinstance(error, ModelUnavailable):
        return ApiError(503, one_line(error), code="model_unavailable", param="model", kind=SERVER_ERROR)
    if isinstance(error, MediaError):
        return invalid_image(error)
    if isinstance(error, ConfigError | DataError):
        return ApiError(400, one_line(error), code="invalid_request")
    return None


def error_event(error: ApiError, *, fatal: bool) -> dict[str, Any]:
    """The `error` event of a live session; after a fatal one the server closes the connection."""
    event = {"type": "error", **error.body(), "timestamp": getattr(error, "timestamp", None), "fatal": fatal}
    if (seconds := (error.headers or {}).get("retry-after")) is not None:
        event["retry_after_s"] = int(seconds)  # a WebSocket's events have no headers
    return event


def install_error_handlers(app: FastAPI) -> None:
    """Give every refusal OpenAI's shape. Unexpected exceptions are left to the request middleware."""

    async def on_validation_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        if isinstance(error.body, bytes):  # FastAPI leaves a body that is not called JSON as it came
            return _not_called_json(request.headers.get("content-type")).response()
        return _validation_error(error).response()

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, ApiError):
            return error.response()
        assert isinstance(error, HTTPException)
        path = request.url.path
        message, code = {
            404: (f"There is nothing at {path}.", "not_found"),
            405: (f"{request.method} is not allowed at {path}.", "method_not_allowed"),
        }.get(error.status_code, (str(error.detail), "invalid_request"))
        headers = dict(error.headers or {})
        return ApiError(error.status_code, message, code=code, headers=headers).response()

    async def on_known_error(_: Request, error: Exception) -> JSONResponse:
        refusal = as_api_error(error)
        if refusal is None:
            raise error
        return refusal.response()

    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(CasaError, on_known_error)


def _not_called_json(content_type: str | None) -> ApiError:
    named = "missing" if content_type is None else repr(content_type[:80])
    message = f"The header content-type is {named}; this call takes application/json."
    return ApiError(415, message, code="unsupported_media_type")


def _validation_error(error: RequestValidationError) -> ApiError:
    """The first error in a body, with the field's path as a client would write it."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return ApiError(400, f"The request body is not valid JSON: {reason}.", code="invalid_json")
    param = first.get("ctx", {}).get("param") or field_path(first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unsupported parameter: {param!r}.", code="unsupported_parameter", param=param)
    if first["type"] == "unsupported_parameter":
        return ApiError(400, f"{first['msg']}.", code="unsupported_parameter", param=param)
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(
        400, f"Invalid {param or 'request body'}: {first['msg']}.", code=code, param=param or None
    )


def field_path(location: tuple[int | str, ...]) -> str:
    """("body", "messages", 0, "content") → "messages[0].content"."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "body" and not step.startswith(UNION_TAG):
            path += f".{step}" if path else step
    return path


def one_line(error: CasaError) -> str:
    """What, why and remedy as sentences, for clients."""
    return public(". ".join(part.rstrip(".") for part in (error.what, error.why, error.remedy) if part) + ".")


def public(text: str) -> str:
    """An error's text without what is about this process and machine: objects' addresses, files' paths."""
    return _PATH.sub("a file", without_addresses(text))
