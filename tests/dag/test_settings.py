"""A stage's settings are complete, known and typed, or refused with every fault named."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from casa_core.errors import ConfigError
from pipelines.dag.settings import read_settings, stage_settings


@stage_settings
class Inner:
    share: float


@stage_settings
class Outer:
    name: str
    betas: tuple[float, float]
    inner: Inner
    limit: int | None


WHOLE = {"name": "a", "betas": [0.9, 0.99], "inner": {"share": 0.5}, "limit": None}


def test_json_becomes_typed_settings():
    read = read_settings(Outer, WHOLE)
    assert (read.name, read.betas, read.inner.share, read.limit) == ("a", (0.9, 0.99), 0.5, None)


def test_settings_are_frozen_and_travel_to_a_worker():
    read = read_settings(Outer, WHOLE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.name = "b"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(read)) == read


def test_every_fault_is_named_at_once():
    wrong = {"name": "a", "betas": [0.9], "inner": {"share": "much"}, "limt": 3}
    with pytest.raises(ConfigError) as refused:
        read_settings(Outer, wrong)
    assert all(field in str(refused.value) for field in ("betas", "inner.share", "limit", "limt"))
