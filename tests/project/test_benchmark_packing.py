"""What packing is measured beside: each way packs every sample, and the textbook's ways do what they say."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import packing, packing_textbook
from benchmarks.packing_sizes import MIXES, draw
from pipelines.data.pack.budgets import Budget

BUDGET = Budget(100, 200)
PAIRS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 200)), max_size=40)
INSTALLED = [name for name in packing.WAYS if name not in ("TRL, by text", "binpacking, by text")]


def arrays(pairs):
    text_N, image_N = np.array(pairs, np.int64).reshape(-1, 2).T
    return text_N, image_N


def by_looking_at_all(pairs, order, choose):
    """Each sample into the one that ``choose`` prefers of the sequences with room, or into a new one."""
    members, rooms = [], []
    for number in order:
        text, image = pairs[number]
        fits = [place for place, room in enumerate(rooms) if room[0] >= text and room[1] >= image]
        if not fits:
            members.append([])
            rooms.append((100, 200))
        place = min(fits, key=lambda place: choose(rooms[place], place)) if fits else len(members) - 1
        members[place].append(number)
        rooms[place] = rooms[place][0] - text, rooms[place][1] - image
    return members


def decreasing(pairs):
    return sorted(range(len(pairs)), key=lambda n: -max(pairs[n][0] / 100, pairs[n][1] / 200))


@settings(deadline=None)
@given(pairs=PAIRS)
def test_first_fit_takes_the_first_sequence_with_room(pairs):
    found = list(packing_textbook.first_fit(*arrays(pairs), BUDGET))
    assert found == by_looking_at_all(pairs, range(len(pairs)), lambda room, place: place)
    found = list(packing_textbook.first_fit_decreasing(*arrays(pairs), BUDGET))
    assert found == by_looking_at_all(pairs, decreasing(pairs), lambda room, place: place)


@settings(deadline=None)
@given(pairs=PAIRS)
def test_best_fit_takes_the_fullest_sequence_with_room(pairs):
    text_N, image_N = arrays(pairs)
    tight = 0 if text_N.sum() * 2 >= image_N.sum() else 1
    found = list(packing_textbook.best_fit_decreasing(text_N, image_N, BUDGET))
    assert found == by_looking_at_all(
        pairs, decreasing(pairs), lambda room, place: (room[tight], room[1 - tight], place)
    )


@settings(deadline=None)
@given(pairs=PAIRS)
def test_next_fit_looks_at_the_last_sequence_only(pairs):
    sequences = list(packing_textbook.next_fit(*arrays(pairs), BUDGET))
    assert [number for members in sequences for number in members] == list(range(len(pairs)))
    for members, following in itertools.pairwise(sequences):
        text, image = np.array([pairs[number] for number in members]).sum(axis=0)
        assert text <= BUDGET.text
        assert image <= BUDGET.image
        next_text, next_image = pairs[following[0]]
        assert text + next_text > BUDGET.text or image + next_image > BUDGET.image


@pytest.mark.parametrize("mix", MIXES)
def test_every_way_packs_every_sample_within_both_budgets(mix):
    text_N, image_N = draw(3000, mix)
    for name in INSTALLED:  # `measure` asserts that each sample is in one sequence
        found = packing.measure(packing.WAYS[name][0], text_N, image_N)
        assert found.samples == 3000
        assert found.over_budget == 0
        assert found.sequences >= found.sized_bound >= found.bound


def test_where_both_budgets_are_said_to_bind_they_do():
    text_N, image_N = draw(100_000, "both bind")
    assert text_N.sum() / 2048 == pytest.approx(image_N.sum() / 20_480, rel=0.01)


def test_a_peer_that_is_not_installed_has_its_line_in_the_table():
    own = {
        name: 1.0 if name in ("text_fill", "image_fill", "cpu_seconds", "grown_mb") else 9
        for name in packing.Measured.__slots__
    }
    payload = {"command": "c", "date": "d", "machine": "m", "options": {}, "growth": [own]}
    page = packing.report(payload | {"mixes": {"a mix": {"ours": own, "TRL": "No module named 'trl'"}}})
    assert "| TRL | not installed: No module named 'trl' |" in page
    assert "| ours | 9 | 1.0000 |" in page
    ElementTree.fromstring(packing.drawing([own, own | {"samples": 90}]))
