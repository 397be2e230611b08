"""`/openapi.json`: the routes as they are, with the refusals that really come, and none that does not."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from serve.api.access import COUNTED, HEALTH, is_open
from serve.api.responses import ChatCompletionChunk, ErrorResponse
from serve.api.settings import ServeSettings

REFUSALS = {
    400: "The request is not valid; `param` names the field.",
    401: "No API key, or one that is not known here.",
    403: "Another host name, or a web page of another origin.",
    404: "There is no such model, file or session.",
    408: "The body was not whole in time.",
    413: "The body is too large.",
    415: "The body is of another type, or compressed.",
    429: "Too many calls; `Retry-After` says when to come back.",
    500: "The server failed; its log has the details under the request id.",
    503: "The engine is gone or stuck, or the model cannot be loaded.",
}
ERROR_REF = {"$ref": f"#/components/schemas/{ErrorResponse.__name__}"}
DEFINITIONS = (ErrorResponse, ChatCompletionChunk)
METHODS = ("get", "post", "put", "patch", "delete")


def describe(app: FastAPI, settings: ServeSettings) -> None:
    """Let an app answer `/openapi.json` with its corrected description."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = corrected(generate(), settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def corrected(document: dict[str, Any], settings: ServeSettings) -> dict[str, Any]:
    """A generated description with the statuses of this endpoint, its error shape, keys and models' names."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    modes = [(model, "serialization") for model in DEFINITIONS]
    _, added = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas.update(added["$defs"])
    if (request := schemas.get("ChatCompletionRequest")) is not None:
        request["properties"]["model"]["enum"] = list(settings.checkpoints)
    keyed = settings.access.keys is not None
    if keyed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if (operation := operations.get(method)) is None:
                continue
            asks = keyed and not is_open(path)
            if asks:
                operation["security"] = [{"key": []}]
            _add_refusals(operation, _statuses(path, operation, asks))
    return document


def _statuses(path: str, operation: dict[str, Any], asks_for_key: bool) -> set[int]:
    statuses = {500} if path in HEALTH else {403, 500}
    if asks_for_key:
        statuses |= {401}
    if "requestBody" in operation:
        statuses |= {400, 408, 413, 415, 429}
    if operation.get("parameters"):
        statuses |= {400, 404}
    if path in COUNTED:
        statuses |= {404, 503}
    return statuses


def _add_refusals(operation: dict[str, Any], statuses: set[int]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for status in sorted(statuses):
        content = {"application/json": {"schema": ERROR_REF}}
        own = {"description": REFUSALS[status], "content": content}
        if status == 429:
            seconds = {"description": "Seconds.", "schema": {"type": "string"}}
            own["headers"] = {"Retry-After": seconds}
        responses.setdefault(str(status), own)
    operation["responses"] = dict(sorted(responses.items()))
