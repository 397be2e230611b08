"""Fingerprints: equal for equal work, different for different work, refused for what is not stable."""

from __future__ import annotations

import datetime
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_core.errors import ConfigError
from pipelines.dag.fingerprint import canonical_json, stage_fingerprint
from tests.support.paths import ROOT

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda text: "/" not in text)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_canonical_json_says_the_same_as_the_value(value: Any):
    assert json.loads(canonical_json(value)) == value


@given(VALUES)
def test_a_value_read_back_has_the_same_canonical_json(value: Any):
    assert canonical_json(json.loads(json.dumps(value))) == canonical_json(value)


@given(st.dictionaries(TEXT, VALUES, min_size=2, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_count(value: dict[str, Any], random: Any):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@given(VALUES, VALUES)
def test_different_values_have_different_canonical_json(one: Any, other: Any):
    # JSON's own notion of equality: True is not 1, but 0.0 and -0.0 are the same number.
    same = json.dumps(one, sort_keys=True).replace("-0.0", "0.0") == json.dumps(
        other, sort_keys=True
    ).replace("-0.0", "0.0")
    assert (canonical_json(one) == canonical_json(other)) == same


def test_the_fingerprint_is_the_same_in_another_process():
    program = (
        "from pipelines.dag.fingerprint import stage_fingerprint as f;"
        "print(f('pack', {'b': [1, 2.5], 'a': {'ü': None}}, {'vqa': 'abc'}, '1'))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == stage_fingerprint(
        "pack", {"a": {"ü": None}, "b": [1, 2.5]}, {"vqa": "abc"}, "1"
    )


def test_kind_settings_inputs_roles_and_code_all_count():
    base = stage_fingerprint("pack", {"a": 1}, {"x": "1", "y": "2"}, "1")
    others = [
        stage_fingerprint("train", {"a": 1}, {"x": "1", "y": "2"}, "1"),
        stage_fingerprint("pack", {"a": 2}, {"x": "1", "y": "2"}, "1"),
        stage_fingerprint("pack", {"a": 1.0}, {"x": "1", "y": "2"}, "1"),
        stage_fingerprint("pack", {"a": 1}, {"x": "2", "y": "1"}, "1"),
        stage_fingerprint("pack", {"a": 1}, {"x": "1", "y": "2"}, "2"),
    ]
    assert len({base, *others}) == 6


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (math.nan, "finite"),
        (math.inf, "finite"),
        ({1, 2}, "sorted list"),
        (print, "package.module:function"),
        (lambda: 0, "package.module:function"),
        (b"bytes", "SHA-256"),
        (datetime.datetime(2026, 1, 1), "ISO-8601"),
        (datetime.date(2026, 1, 1), "ISO-8601"),
        (Path("data"), "str(path)"),
        (np.float64(1), ".item()"),
        (np.arange(2), ".tolist()"),
        (1j, "use str, int"),
        (object(), "use str, int"),
        (f"{tempfile.gettempdir()}/data", "content"),
        ("/tmp/x", "`where`"),
        ("\ud800", "valid text"),
        ({1: "a"}, "string"),
    ],
)
def test_an_unstable_value_is_refused_with_its_place_and_the_remedy(value: Any, remedy: str):
    with pytest.raises(ConfigError) as caught:
        canonical_json({"settings": [{"deep": value}]})
    assert "settings.0.deep" in caught.value.what
    assert remedy in caught.value.remedy
