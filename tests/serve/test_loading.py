"""How a replica loads its engine: as the recipe's deploy section says, and ready once that is done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from casa_core.engine.requests import GenerationRequest
from casa_core.types import Sample, Text
from serve.loading import load_engine, load_pool
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


COPIED: list[tuple[str, str]] = []


@contextmanager
def copied(uri: str, digest: str) -> Iterator[Path]:
    """Stands for the function that copies what lies elsewhere."""
    COPIED.append((uri, digest))
    yield Path(__file__).parent


def test_a_further_checkpoint_that_lies_elsewhere_is_copied_once_and_when_it_is_asked_for(tmp_path: Path):
    settings = settings_with(
        model_folder=tmp_path,
        model_name="own",
        models={"other": {"folder": "s3://bucket/model", "digest": "d"}},
        models_per_engine=1,
        engine=FAKE,
        fetch=f"{__name__}:copied",
    )
    sample = Sample(source="test", sample_id="0", parts=(Text(role="user", text="hi"),))

    async def scene() -> None:
        pool = load_pool(settings, copies)
        assert not COPIED
        for name in ("other", "own", "other"):
            await pool.generate(GenerationRequest(sample=sample, model=name))
            assert pool.held == (name,)
        pool.close()

    with ExitStack() as copies:
        asyncio.run(scene())
    assert COPIED == [("s3://bucket/model", "d")]
