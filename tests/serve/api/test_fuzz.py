"""Requests that schemathesis makes up from `/openapi.json`, good ones and bad ones: only what is described
comes back, and never a failure of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import running, settings_with

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 25
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


@pytest.fixture(scope="module")
def schema(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_made_up_requests_get_described_answers_only(url: str, schema: Any):
    seen: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        statuses = seen.setdefault(f"{operation.method} {operation.path}", set())
        fuzz(operation, GenerationMode.POSITIVE, statuses.add)
        if "requestBody" in operation.definition.raw:  # every text is good as a part of a path
            fuzz(operation, GenerationMode.NEGATIVE, statuses.add)
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert {200, 400} <= seen["post /v1/chat/completions"]
    print(seen)


def fuzz(operation: Any, mode: GenerationMode, saw: Callable[[int], None]) -> None:
    """Send made-up requests of one call, and check each answer."""

    @FEW
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call()
        saw(response.status_code)
        case.validate_response(response, checks=CHECKS)

    send()
