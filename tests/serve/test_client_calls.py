"""Sixty calls each by curl, `openai`, LangChain, LiteLLM and lmms-eval are answered, or refused by name.

What these clients send is recorded; the programs themselves run too, where they are installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.clients.calls import CALLS, serving
from tests.support.clients.outcomes import Outcome, Refused, outcome_of
from tests.support.clients.programs import PROGRAMS, calls_of, make_all
from tests.support.clients.recorder import Recorder, read, recorded_clients

RECORDER = Recorder()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(RECORDER) as address:
        yield address


def test_the_list_has_sixty_calls_and_each_refusal_has_a_name():
    assert len(CALLS) == 60
    refusals = [call.right for call in CALLS.values() if isinstance(call.right, Refused)]
    assert all(one.code and one.param for one in refusals)


def test_a_harness_makes_sixty_calls_too():
    assert len(read("lmms-eval")["sent"]) == 60


@pytest.mark.parametrize("client", recorded_clients())
def test_what_a_client_was_recorded_to_send_has_the_right_outcome(url: str, client: str):
    recorded, calls = read(client), calls_of(client)
    assert {*recorded["sent"], *recorded["inexpressible"]} == {*calls}
    outcomes: dict[str, Outcome] = {}
    with httpx.Client(base_url=url) as http:
        for name, requests in recorded["sent"].items():
            for request in requests:
                if request["body"] is None:
                    response = http.get(request["path"])
                else:
                    headers = {"content-type": request["content_type"]}
                    response = http.post(
                        request["path"], content=json.dumps(request["body"]), headers=headers
                    )
            outcomes[name] = outcome_of(response.status_code, response.text)
    assert outcomes == {name: calls[name].right for name in outcomes}


@pytest.mark.parametrize("client", PROGRAMS)
def test_a_client_shows_the_right_outcomes(url: str, client: str):
    try:
        made = make_all(client, url, RECORDER)
    except ImportError as missing:
        pytest.skip(str(missing))
    wrong = {name: one for name, one in made.outcomes.items() if not calls_of(client)[name].right.agrees(one)}
    assert not wrong
