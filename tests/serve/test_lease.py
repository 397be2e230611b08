"""A stream of which nothing is heard is ended by its engine; one whose endpoint lives is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.serve.handle import DeploymentHandle

from casa_core.engine.requests import StreamSettings
from serve import engine_replica, engines
from serve.engine_replica import EngineReplica
from serve.engines import Engines
from tests.support.serve.server import settings_with

LEASE_S = 0.4


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineReplica:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="engine-1"))
    monkeypatch.setattr(engine_replica.ray_serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(engine_replica, "LEASE_S", 0.1)
    settings = settings_with(
        model_folder=str(tmp_path),
        loopback_only=False,
        engine="tests.support.serve.fakes:FakeEngine",
        limits={"idle_seconds": LEASE_S / 2},
    )
    return EngineReplica(settings.model_dump(mode="json"))


class Handle:
    """The handle of an engine deployment of one replica, in this process."""

    def __init__(self, replica: EngineReplica) -> None:
        self._replica, self._method = replica, ""
        self.held: list[list[str]] = []

    def options(self, *, method_name: str = "", **_: Any) -> Any:
        call = Handle(self._replica)
        call._method, call.held = method_name, self.held
        return call

    def __getattr__(self, method: str) -> Any:
        if method == "hold":
            return SimpleNamespace(remote=self._hold)
        return SimpleNamespace(remote=getattr(self._replica, method))

    async def _hold(self, names: list[str]) -> None:
        self.held.append(names)
        await self._replica.hold(names)

    def remote(self, *arguments: Any) -> Any:
        return getattr(self._replica, self._method)(*arguments)


def test_the_lease_is_at_least_twice_the_time_that_a_client_may_be_silent(replica: EngineReplica):
    assert replica._lease_s == LEASE_S


def test_a_stream_of_which_nothing_is_heard_ends(replica: EngineReplica):
    async def play() -> None:
        async for _ in replica.open("x.1", StreamSettings(), None):
            pass
        assert not replica._held

    asyncio.run(asyncio.wait_for(play(), 20 * LEASE_S))


def test_an_endpoint_that_lives_keeps_quiet_streams_with_one_call_for_all_of_a_replica(
    replica: EngineReplica, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engines, "HOLD_S", LEASE_S / 4)

    async def play() -> None:
        handle = Handle(replica)
        own = Engines(cast(DeploymentHandle, handle))
        for _ in range(3):
            await own.open_session(StreamSettings())
        names = set(replica._held)
        await asyncio.sleep(4 * LEASE_S)
        assert set(replica._held) == names, "none was ended and opened again"
        assert {len(one) for one in handle.held} == {3}
        own.close()
        await asyncio.sleep(0.05)
        assert not replica._held

    asyncio.run(asyncio.wait_for(play(), 20 * LEASE_S))
