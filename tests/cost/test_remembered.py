"""What a plan finds by running small models: remembered between processes, and never trusted when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cost import remembered as module
from pipelines.cost.remembered import remembered
from pipelines.cost.synthetic import SequenceShape, blank_sequence
from pipelines.storage import host

NUMBERS = [1.5, 0.1 + 0.2, -3e-17]


class Finder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> list[float]:
        self.calls += 1
        return NUMBERS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "casa" / "costs"


def test_what_was_found_once_is_the_same_to_the_last_bit_and_not_found_again(cache: Path):
    find = Finder()
    assert [remembered("bytes", ["a"], find) for _ in range(2)] == [NUMBERS, NUMBERS]
    assert find.calls == 1
    assert remembered("bytes", ["b"], find) == NUMBERS
    assert find.calls == 2, "other settings are another entry"


def test_other_code_or_another_torch_is_another_entry(cache: Path, monkeypatch: pytest.MonkeyPatch):
    find = Finder()
    remembered("bytes", ["a"], find)
    monkeypatch.setattr(module, "version", lambda name: "0.0")
    remembered("bytes", ["a"], find)
    monkeypatch.setattr(module, "CODE", ("casa_core/fusion",))
    remembered("bytes", ["a"], find)
    assert find.calls == 3


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"[]", b'{"numbers": [1], "checksum": ""}', None])
def test_a_damaged_entry_is_found_again_and_replaced(cache: Path, damage: bytes | None):
    find = Finder()
    remembered("bytes", ["a"], find)
    [entry] = cache.iterdir()
    if damage is None:  # one digit
        kept = json.loads(entry.read_bytes())
        damage = json.dumps({**kept, "numbers": [1.25, *kept["numbers"][1:]]}).encode()
    entry.write_bytes(damage)
    assert [remembered("bytes", ["a"], find) for _ in range(2)] == [NUMBERS, NUMBERS]
    assert find.calls == 2


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "casa").write_text("a file in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remembered("bytes", ["a"], Finder()) == NUMBERS


def test_a_full_disk_costs_time_only(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    (small_disk / "full").write_bytes(bytes(2**20 - 2**13))
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    find = Finder()
    for number in range(5):
        assert remembered("bytes", [str(number)], find) == NUMBERS
    assert not list(small_disk.rglob("*.partial"))


def test_without_a_home_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch):
    def nowhere() -> Path:
        raise host.StoreError("There is no home folder.", "", "")

    monkeypatch.setattr(module, "cache_folder", nowhere)
    assert remembered("bytes", ["a"], Finder()) == NUMBERS


def test_old_entries_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_ENTRIES", 3)
    for number in range(6):
        remembered("bytes", [str(number)], Finder())
    assert len(list(cache.iterdir())) == 3


def test_a_blank_sequence_has_the_shape_that_was_asked_for():
    shape = SequenceShape(text_tokens=24, images=2, side=4, patch_values=12, documents=2)
    sequence = blank_sequence(shape)
    assert len(sequence.input_ids) == 24
    assert sum(sequence.loss_mask) == shape.trained_tokens
    assert [tuple(patches.shape) for patches in sequence.patches_PE] == [(64, 12)] * 2
