"""Sixty calls each by curl, `openai`, LangChain, LiteLLM and lmms-eval are answered, or refused by name.

What these clients send is recorded; the programs themselves run too, where they are installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve.loading import load_engine
from tests.support.clients.calls import CALLS, MAX_NEW_TOKENS, serving
from tests.support.clients.outcomes import Answered, Outcome, Refused, outcome_of
from tests.support.clients.programs import PROGRAMS, calls_of, make_all
from tests.support.clients.recorder import Recorder, read, recorded_clients
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.server import running, settings_with

RECORDER = Recorder()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(RECORDER) as address:
        yield address


@pytest.fixture(scope="module")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), ["red square, blue circle"], context=4096)
    settings = settings_with(model_folder=folder, max_new_tokens=MAX_NEW_TOKENS)
    with running(load_engine(settings), settings) as address:
        yield address


def test_the_list_has_sixty_calls_and_each_refusal_has_a_name():
    assert len(CALLS) == 60
    refusals = [call.right for call in CALLS.values() if isinstance(call.right, Refused)]
    assert all(one.code and one.param for one in refusals)


def test_a_harness_makes_sixty_calls_too():
    assert len(read("lmms-eval")["sent"]) == 60


def replayed(url: str, client: str) -> dict[str, Outcome]:
    """What comes of each call that a client was recorded to make."""
    outcomes = {}
    with httpx.Client(base_url=url, timeout=60) as http:
        for name, requests in read(client)["sent"].items():
            answers = [
                http.get(request["path"])
                if request["body"] is None
                else http.post(
                    request["path"],
                    content=json.dumps(request["body"]),
                    headers={"content-type": request["content_type"]},
                )
                for request in requests
            ]
            outcomes[name] = outcome_of(answers[-1].status_code, answers[-1].text)
    return outcomes


@pytest.mark.parametrize("client", recorded_clients())
def test_what_a_client_was_recorded_to_send_has_the_right_outcome(url: str, client: str):
    recorded, calls = read(client), calls_of(client)
    assert {*recorded["sent"], *recorded["inexpressible"]} == {*calls}
    outcomes = replayed(url, client)
    assert outcomes == {name: calls[name].right for name in outcomes}


def form(outcome: Outcome) -> Any:
    """What of an outcome does not depend on the model's words."""
    if not isinstance(outcome, Answered):
        return outcome
    return len(outcome.texts), bool(outcome.tokens), outcome.logprobs is not None


@pytest.mark.parametrize("client", ["curl", "lmms-eval"])
def test_the_engine_itself_answers_and_refuses_the_same_calls(real_url: str, client: str):
    right = {name: form(call.right) for name, call in calls_of(client).items()}
    outcomes = replayed(real_url, client)
    assert {name: form(one) for name, one in outcomes.items()} == {name: right[name] for name in outcomes}


@pytest.mark.parametrize("client", PROGRAMS)
def test_a_client_shows_the_right_outcomes(url: str, client: str):
    try:
        made = make_all(client, url, RECORDER)
    except ImportError as missing:
        pytest.skip(str(missing))
    wrong = {name: one for name, one in made.outcomes.items() if not calls_of(client)[name].right.agrees(one)}
    assert not wrong
