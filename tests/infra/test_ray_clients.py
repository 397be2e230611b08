"""The HTTP clients of a Ray cluster: at the address they are given, and no wait without an end."""

from __future__ import annotations

import time

import pytest
import requests

from casa_core.errors import ClusterError
from infra import ray_clients
from infra.local_ray import RaySession
from infra.ray_clients import JobsClient, ServeClient
from infra.ray_errors import Busy, Unreachable
from tests.support.http_servers import VERSION, answering, silent

VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_address_of_the_environment_is_not_used(
    variable: str, ray_head: RaySession, monkeypatch: pytest.MonkeyPatch
):
    with answering(lambda method, path: (200, VERSION)) as (foreign, requests):
        monkeypatch.setenv(variable, foreign)
        assert isinstance(JobsClient(ray_head.address).list_jobs(), list)
        assert "applications" in ServeClient(ray_head.address).get_serve_details()
    assert requests == []


def test_a_proxy_of_the_environment_is_not_asked_for_an_address_of_this_machine(
    ray_head: RaySession, monkeypatch: pytest.MonkeyPatch
):
    with answering(lambda method, path: (502, "the proxy cannot")) as (proxy, requests):
        for variable in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(variable, proxy)
        assert isinstance(JobsClient(ray_head.address).list_jobs(), list)
    assert requests == []


@pytest.mark.parametrize("client", [JobsClient, ServeClient])
def test_a_server_that_never_answers_is_given_up_by_name(
    client: type[JobsClient | ServeClient], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_clients, "ANSWER_S", 0.5)
    began = time.monotonic()
    with silent() as address, pytest.raises(Unreachable) as caught:
        client(address)
    assert time.monotonic() - began < 5
    assert address in caught.value.what
    assert "no answer within" in caught.value.why
    assert "where.ray.address" in caught.value.remedy


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("head.example", False)])
def test_only_a_head_on_this_machine_is_said_to_start_again(host: str, local: bool):
    client = JobsClient.__new__(JobsClient)
    client._address = f"http://{host}:8265"
    remedy = client._unreachable(requests.exceptions.ConnectTimeout()).remedy
    assert ("local head" in remedy) == local
    assert "where.ray.address" in remedy


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:9", "Failed to establish a new connection: [Errno 111] Connection refused."),
        ("http://nowhere.invalid:80", "Failed to resolve 'nowhere.invalid'"),
    ],
)
def test_a_cluster_out_of_reach_is_named_with_what_the_system_said(address: str, why: str):
    with pytest.raises(Unreachable) as caught:
        JobsClient(address)
    assert caught.value.what == f"The Ray cluster at {address} does not answer."
    assert caught.value.why.startswith(why)
    assert "Pool" not in caught.value.why


def test_another_program_is_told_from_a_dashboard():
    for body in ("<html>", "[]", "{}"):
        with (
            answering(lambda method, path, body=body: (200, body)) as (address, _),
            pytest.raises(Unreachable, match="is no Ray dashboard"),
        ):
            JobsClient(address)


def test_a_refused_token_is_an_error_with_a_remedy():
    with (
        answering(lambda method, path: (401, "who are you")) as (address, _),
        pytest.raises(ClusterError, match="RAY_AUTH_TOKEN"),
    ):
        JobsClient(address)


def test_a_request_that_a_servers_error_answers_is_sent_again():
    answers = iter([(500, "No available agent"), (503, "starting")])

    def answer(method: str, path: str) -> tuple[int, str]:
        return (200, VERSION) if "version" in path else next(answers, (200, "[]"))

    with answering(answer) as (address, requests):
        assert JobsClient(address).list_jobs() == []
    assert [request for request in requests if "jobs" in request] == ["GET /api/jobs/"] * 3


def test_servers_errors_end_after_a_bound_with_what_was_answered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_clients, "BUSY_S", 1.0)
    with (
        answering(lambda method, path: (503, "no upstream")) as (address, requests),
        pytest.raises(Busy) as caught,
    ):
        JobsClient(address)
    assert len(requests) == 2
    assert address in caught.value.what
    assert "503: no upstream" in caught.value.why
    assert caught.value.remedy


def test_a_refusal_that_a_head_hands_on_as_its_own_error_is_final():
    def answer(method: str, path: str) -> tuple[int, str]:
        refusal = "RuntimeError: Request failed with status code 400: job x already exists"
        return (200, VERSION) if "version" in path else (500, refusal)

    with (
        answering(answer) as (address, requests),
        pytest.raises(RuntimeError, match="already exists") as caught,
    ):
        JobsClient(address).submit_job(entrypoint="true", submission_id="x")
    assert not isinstance(caught.value, ClusterError)
    assert requests.count("POST /api/jobs/") == 1
