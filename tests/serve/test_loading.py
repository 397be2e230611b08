"""How a replica loads its engine: as the recipe's deploy section says, and ready once that is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serve.loading import load_engine
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import settings_with

FAKE = "tests.support.serve.fakes:FakeEngine"


@pytest.mark.parametrize(
    ("asked", "how"),
    [
        ({}, {}),
        ({"compile": True}, {"compile": True}),
        ({"dtype": "bf16", "quantize": "int8"}, {"dtype": torch.bfloat16, "quantize": "int8"}),
    ],
)
def test_the_engine_computes_as_the_settings_say(tmp_path: Path, asked: dict[str, object], how: object):
    engine = load_engine(settings_with(model_folder=tmp_path, engine=FAKE, **asked))
    assert isinstance(engine, FakeEngine)
    assert engine.how == how


@pytest.mark.parametrize("way", ["compile", "graphs", "neither"])
def test_steps_are_compiled_or_recorded_before_the_replica_is_ready(tmp_path: Path, way: str):
    asked = {} if way == "neither" else {way: True}
    engine = load_engine(settings_with(model_folder=tmp_path, engine=FAKE, **asked))
    assert isinstance(engine, FakeEngine)
    assert engine.warm is (way != "neither")
    assert engine.settings.graphs is (way == "graphs")
