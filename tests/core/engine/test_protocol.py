"""The engine, its streams and the fakes of the tests offer the one engine interface."""

from __future__ import annotations

import inspect

import pytest

from casa_core.engine.engine import Engine, StreamSession
from casa_core.engine.protocol import EngineProtocol, LoopProtocol, StreamProtocol
from tests.support.serve.fakes import FakeEngine


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        (Engine, EngineProtocol),
        (Engine, LoopProtocol),
        (FakeEngine, LoopProtocol),
        (StreamSession, StreamProtocol),
    ],
)
def test_every_engine_and_stream_takes_the_calls_of_the_protocol(kind: type, protocol: type) -> None:
    for name, asked in vars(protocol).items():
        if name.startswith("_") or isinstance(asked, property):
            continue
        own = inspect.signature(getattr(kind, name)).parameters
        for parameter in inspect.signature(asked).parameters.values():
            assert (own[parameter.name].kind, own[parameter.name].default) == (
                parameter.kind,
                parameter.default,
            ), name
        further = [own[extra] for extra in own.keys() - inspect.signature(asked).parameters.keys()]
        assert all(extra.default is not extra.empty for extra in further), name


def test_engines_and_streams_have_all_members_of_the_protocol() -> None:
    assert isinstance(FakeEngine(), LoopProtocol)
    for kind, protocol in (
        (Engine, EngineProtocol),
        (Engine, LoopProtocol),
        (StreamSession, StreamProtocol),
    ):
        assert {name for name in vars(protocol) if not name.startswith("_")} <= set(dir(kind))
