"""`/openapi.json` says what comes: statuses, shapes, limits; and nothing that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from infra.api_keys import as_text, make_key
from infra.endpoint_settings import Limits
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, image_part, picture, running, settings_with

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello you"}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/openapi.json").json()


def assert_described(document: dict[str, Any], path: str, method: str, answer: httpx.Response) -> None:
    """The answer's status is documented, and its JSON is as the schema has it."""
    responses = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses
    content = responses[str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content
    if kind == "application/json":
        schema = {**content[kind]["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(answer.json())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (HELLO, 200),
        ({**HELLO, "logprobs": True, "top_logprobs": 2, "n": 2}, 200),
        ({**HELLO, "messages": [{"role": "user", "content": [image_part(picture())]}]}, 200),
        ({**HELLO, "stream": True, "stream_options": {"include_usage": True}}, 200),
        ({**HELLO, "n": 99}, 400),
        ({**HELLO, "model": "other"}, 404),
        ({**HELLO, "messages": [{"role": "user", "content": "explode"}]}, 500),
    ],
)
def test_answers_of_chat_are_as_described(
    url: str, document: dict[str, Any], body: dict[str, Any], status: int
):
    answer = httpx.post(f"{url}{CHAT}", json=body)
    assert answer.status_code == status
    assert_described(document, CHAT, "post", answer)


def test_answers_of_the_other_routes_are_as_described(url: str, document: dict[str, Any]):
    for path in ("/v1/models", "/healthz", "/readyz"):
        assert_described(document, path, "get", httpx.get(f"{url}{path}"))
    for name in (MODEL, "other"):
        answer = httpx.get(f"{url}/v1/models/{name}")
        assert_described(document, "/v1/models/{name}", "get", answer)
    answer = httpx.post(f"{url}{CHAT}", content=b"x", headers={"content-type": "text/plain"})
    assert_described(document, CHAT, "post", answer)


def test_each_route_states_its_refusals_in_openais_shape_and_no_422(document: dict[str, Any]):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (path, method)
            responses = operation["responses"]
            assert "422" not in responses
            assert "500" in responses
            for status, response in responses.items():
                if status >= "400" and (path, status) != ("/readyz", "503"):
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorResponse"}
    chat = document["paths"][CHAT]["post"]["responses"]
    assert chat.keys() >= {"200", "400", "403", "404", "408", "413", "415", "429", "500"}
    assert "Retry-After" in chat["429"]["headers"]
    assert not any("ValidationError" in name for name in document["components"]["schemas"])


def test_every_reference_of_the_description_leads_somewhere(document: dict[str, Any]):
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
            value = list(value.values())
        for inner in value if isinstance(value, list) else []:
            yield from references(inner)

    schemas = document["components"]["schemas"]
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= schemas.keys()
    assert {"ChatCompletionRequest", "ChatCompletion", "ChatCompletionChunk", "ErrorResponse"} <= names


def test_parameters_that_are_accepted_at_their_neutral_value_are_described(
    url: str, document: dict[str, Any]
):
    properties = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert properties["model"]["enum"] == [MODEL]
    accepted = {name: own["enum"][0] for name, own in properties.items() if None in own.get("enum", [])}
    assert {"repetition_penalty", "tool_choice", "response_format", "user"} - accepted.keys() == {"user"}
    assert httpx.post(f"{url}{CHAT}", json={**HELLO, **accepted}).status_code == 200


def test_keys_are_described_where_they_are_asked_for(tmp_path: Path, document: dict[str, Any]):
    assert "securitySchemes" not in document["components"]
    (tmp_path / "keys").write_text(as_text([make_key("a")[1]]))
    with running(FakeEngine(), settings_with(access={"keys": str(tmp_path / "keys")})) as url:
        keyed = httpx.get(f"{url}/openapi.json").json()
        assert_described(keyed, CHAT, "post", httpx.post(f"{url}{CHAT}", json=HELLO))
    [scheme] = keyed["components"]["securitySchemes"].values()
    assert scheme == {"type": "http", "scheme": "bearer"}
    assert keyed["paths"][CHAT]["post"]["security"]
    assert "security" not in keyed["paths"]["/healthz"]["get"]


def test_a_model_states_its_limits(tmp_path: Path):
    write_checkpoint(tmp_path, ["hello"], context=256)
    settings = settings_with(model_folder=str(tmp_path), limits={"images_per_request": 5})
    with running(FakeEngine(), settings) as url:
        model = httpx.get(f"{url}/v1/models/{MODEL}").json()
        assert httpx.get(f"{url}/v1/models").json() == {"object": "list", "data": [model]}
    assert model["max_model_len"] == 256
    assert model["limits"]["images_per_request"] == 5
    assert model["limits"]["image_pixels"] == Limits().image_pixels
    assert model["limits"]["max_new_tokens"] == settings.max_new_tokens


def test_where_the_checkpoint_lies_elsewhere_the_models_context_is_left_open(url: str):
    assert httpx.get(f"{url}/v1/models/{MODEL}").json()["max_model_len"] is None
