"""How many engines are wanted, and which of them a call goes to. No Ray is started."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.serve._private.common import StreamingHTTPRequest

from serve import departures
from serve.autoscaling import replicas_wanted
from serve.routing import MODEL_PREFIX, EndpointRouter, StickyRouter

IDLE = {
    "streams": 0,
    "stream_slots": 8,
    "live_share": 0,
    "waiting": 0,
    "answer_slots": 2,
    "captions": 0,
    "late": 0,
}


def wanted(*engines: dict[str, float]) -> int:
    """The decision about engines that report so; what they leave out is idle."""
    reports = [IDLE | engine for engine in engines]
    metrics = {name: {str(n): report[name] for n, report in enumerate(reports)} for name in IDLE}
    context = SimpleNamespace(
        current_num_replicas=len(engines), target_num_replicas=len(engines), aggregated_metrics=metrics
    )
    return replicas_wanted(context)[0]


@pytest.mark.parametrize(
    ("engines", "count"),
    [
        pytest.param([{}], 1, id="an idle engine stays"),
        pytest.param([{}, {}, {}], 1, id="idle engines go but for one"),
        pytest.param([{"streams": 6}], 1, id="three quarters of the slots are full, and no more"),
        pytest.param([{"streams": 7}], 2, id="one stream more wants another engine"),
        pytest.param([{"streams": 6}, {"streams": 6}], 2, id="as many as hold the streams"),
        pytest.param([{"streams": 6}, {}], 1, id="streams of two that one can hold"),
        pytest.param([{"live_share": 0.9}], 2, id="streams take most of the time"),
        pytest.param([{"captions": 100, "late": 11}], 2, id="captions come late"),
        pytest.param([{"captions": 100, "late": 10}], 1, id="few come late"),
        pytest.param([{"waiting": 3}], 2, id="more answers wait than are given at a time"),
        pytest.param([{"waiting": 2}], 1, id="few wait"),
    ],
)
def test_engines_are_wanted_by_streams_lag_and_queue(engines: list[dict[str, float]], count: int):
    assert wanted(*engines) == count


def test_without_news_of_the_engines_their_number_stays():
    context = SimpleNamespace(current_num_replicas=2, target_num_replicas=3, aggregated_metrics={})
    assert replicas_wanted(context)[0] == 3


def replica(name: str, *models: str, full: bool = False) -> Any:
    stats = {"models": models, "full": full} if models else {}
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats=stats)


def chosen(candidates: list[Any], named: str = "", leaving: tuple[Any, ...] = ()) -> set[str]:
    """Where a call goes to that names a replica, or none."""
    router = SimpleNamespace(_leaving=[one.replica_id for one in leaving], _sent={f"{MODEL_PREFIX}z": "c"})
    call = SimpleNamespace(metadata=SimpleNamespace(session_id=named), routing_context=SimpleNamespace())
    found = asyncio.run(StickyRouter.choose_replicas(cast(Any, router), candidates, cast(Any, call)))
    assert call.routing_context.should_backoff, "Serve would ask again without a pause"
    return {one.replica_id.unique_id for group in found for one in group}


def test_a_call_about_a_stream_goes_to_the_engine_that_holds_it_even_while_that_leaves():
    engines = [replica(name) for name in "abc"]
    assert chosen(engines, "b") == {"b"}
    assert chosen(engines, "b", leaving=(engines[1],)) == {"b"}


def test_other_calls_go_to_engines_that_stay():
    engines = [replica(name) for name in "abc"]
    assert chosen(engines, leaving=(engines[1],)) == {"a", "c"}
    assert chosen(engines, "gone", leaving=(engines[1],)) == {"a", "c"}
    assert chosen(engines[:1], leaving=(engines[0],)) == set()
    assert len(chosen(engines)) == 2


def test_calls_about_a_model_go_where_it_is_and_there_is_room_or_where_it_was_asked_for_last():
    engines = [replica("a", "x"), replica("b", "y"), replica("c", "y", full=True), replica("d")]
    assert chosen(engines, "model:x") == {"a"}
    assert chosen(engines, "model:y") == {"b"}
    assert chosen([replica("b", "y"), replica("c", "x")], "model:z") == {"c"}, "it is loading there"
    assert len(chosen(engines, "model:new")) == 2
    assert len(chosen(engines[2:], "model:y")) == 2, "where it is there is no room: another loads it"
    assert chosen(engines[:2], "model:x", leaving=(engines[0],)) == {"b"}


def endpoint_of(session_id: str, *, header: bool, here: str = "abc", leaving: str = "") -> set[str]:
    """Where a client's call about a live session goes to, from Ray's proxy."""
    router = object.__new__(EndpointRouter)
    endpoints = [*map(replica, here)]
    going = [one.replica_id for one in endpoints if one.replica_id.unique_id in leaving]
    router._leaving = cast(Any, going)
    scope = {"path": "/v1/live" if header else f"/v1/streaming/sessions/{session_id}/frame"}
    request = pickle.dumps(StreamingHTTPRequest(scope, proxy_actor_name="proxy"))
    metadata = SimpleNamespace(session_id=session_id if header else "", is_http_request=True)
    call = SimpleNamespace(metadata=metadata, routing_context=SimpleNamespace(), args=[request])
    found = asyncio.run(router.choose_replicas(endpoints, cast(Any, call)))
    assert call.routing_context.should_backoff
    return {one.replica_id.unique_id for group in found for one in group}


@pytest.mark.parametrize("header", [True, False])
def test_a_call_about_a_session_goes_to_the_endpoint_that_opened_it(header: bool):
    for name in "abc":
        assert endpoint_of(f"live-{name}-1f", header=header) == {name}


@pytest.mark.parametrize("header", [True, False])
def test_where_that_is_gone_or_leaves_all_calls_about_a_session_go_to_the_same_other(header: bool):
    chosen = [endpoint_of(f"live-gone-{number}", header=header) for number in range(40)]
    assert all(len(one) == 1 for one in chosen)
    assert set.union(*chosen) == {"a", "b", "c"}, "and those of different sessions to different ones"
    assert chosen == [endpoint_of(f"live-gone-{number}", header=header, here="cab") for number in range(40)]
    assert endpoint_of("live-a-1", header=header, leaving="a") <= {"b", "c"}


def test_calls_about_no_session_go_to_any_endpoint():
    assert len(endpoint_of("made up", header=True)) == 2
    assert len(endpoint_of("made up", header=False)) == 2
    assert endpoint_of("live-a-1", header=False, here="") == set()


def test_what_clients_write_into_the_header_is_not_kept():
    router = object.__new__(EndpointRouter)
    router._sent = {}
    call = SimpleNamespace(metadata=SimpleNamespace(session_id=f"{MODEL_PREFIX}made up"))
    router.on_request_routed(cast(Any, call), replica("a").replica_id, None)
    assert not router._sent


def test_those_that_ask_for_it_hear_once_of_each_engine_that_leaves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(departures, "_here", frozenset())
    heard: list[str] = []
    end = departures.on_departure(heard.append)
    for here in ("ab", "ab", "b", "bc", ""):
        departures.follow(frozenset(here))
    assert heard[0] == "a"
    assert sorted(heard[1:]) == ["b", "c"]
    end()
    departures.follow(frozenset("x"))
    departures.follow(frozenset())
    assert len(heard) == 3
