"""Mixtures: how often each sample occurs, in which order, and what cannot be mixed."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.errors import ConfigError
from pipelines.dag.settings import read_settings
from pipelines.data.pack import mixture
from pipelines.data.pack.mixture import merged, plan_draw, row_stream
from pipelines.recipe.pack import Mixture

SIZES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 400), min_size=1)


def drawn(available: dict[str, int], asked: Mixture, seed: int = 0) -> list[tuple[str, int, int]]:
    """Every sample drawn as (source, number, pass), in the order of the stream."""
    draw = plan_draw(available, asked)
    chunks = [np.stack(chunk, axis=1) for chunk in row_stream(draw, seed)]
    return [
        (draw.sources[source], number, pass_) for source, number, pass_ in np.concatenate(chunks).tolist()
    ]


def shares(samples: list[tuple[str, int, int]]) -> dict[str, float]:
    counts = Counter(source for source, _, _ in samples)
    return {source: count / len(samples) for source, count in counts.items()}


@given(available=SIZES)
def test_without_a_mixture_every_sample_occurs_once(available):
    expected = {(source, number, 0) for source, size in available.items() for number in range(size)}
    found = drawn(available, Mixture())
    assert len(found) == len(expected)
    assert set(found) == expected


@given(available=SIZES, passes=st.floats(0.05, 6.5), seed=st.integers(0, 5))
def test_passes_repeat_a_source_whole_and_take_a_part_of_it_evenly(available, passes, seed):
    source, size = next(iter(available.items()))
    taken = round(size * passes)
    if taken == 0:
        return
    found = [
        entry[1:] for entry in drawn(available, Mixture(passes={source: passes}), seed) if entry[0] == source
    ]
    assert len(found) == len(set(found)) == taken
    whole, rest = divmod(taken, size)
    assert found[: whole * size] == [(number, pass_) for pass_ in range(whole) for number in range(size)]
    part = [number for number, pass_ in found[whole * size :] if pass_ == whole]
    assert len(part) == rest
    gaps = np.diff(part)
    assert not len(gaps) or (gaps.min() >= size // rest and gaps.max() <= -(-size // rest))


@given(
    available=SIZES,
    weight=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_weights_are_shares_of_the_samples_and_every_sample_is_seen(available, weight):
    weights = dict(zip(available, weight, strict=False))
    found = drawn(available, Mixture(weights=weights))
    assert {(source, number) for source, number, _ in found} == {
        (source, number) for source, size in available.items() for number in range(size)
    }
    for source, share in shares(found).items():
        asked = weights[source] / sum(weights.values())
        assert abs(share - asked) <= max(0.01 * asked, len(available) / len(found))
    # No longer than it must be: some source is seen exactly once.
    counts = Counter(source for source, _, _ in found)
    assert any(counts[source] == size for source, size in available.items())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_temperature_evens_the_sources_out(temperature):
    available = {"large": 8_000, "small": 800}
    asked = {name: size ** (1 / temperature) for name, size in available.items()}
    found = shares(drawn(available, Mixture(temperature=temperature)))
    for name, weight in asked.items():
        assert found[name] == pytest.approx(weight / sum(asked.values()), rel=0.01)


def test_any_stretch_of_the_stream_has_the_asked_shares():
    found = drawn({"a": 9000, "b": 500, "c": 40}, Mixture(weights={"a": 6, "b": 3, "c": 1}))
    for start in range(0, len(found) - 1000, 1000):
        window = shares(found[start : start + 1000])
        assert all(abs(window[name] - share) <= 0.003 for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5), rows=st.integers(1, 40))
def test_merging_is_by_exact_position_however_it_is_cut(sizes, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "_SAMPLES_PER_CHUNK", rows)
        chunks = list(merged(np.array(sizes)))
    found = [pair for chunk in chunks for pair in zip(*(part.tolist() for part in chunk), strict=True)]
    every = [
        (Fraction(2 * n + 1, 2 * size), source, n) for source, size in enumerate(sizes) for n in range(size)
    ]
    assert found == [(source, n) for _, source, n in sorted(every)]


def test_the_seed_decides_only_what_a_part_of_a_pass_takes():
    asked = Mixture(passes={"a": 1.3, "b": 1})
    one, other = (drawn({"a": 100, "b": 10}, asked, seed) for seed in (1, 2))
    assert one == drawn({"a": 100, "b": 10}, asked, 1)
    assert one != other
    assert [entry for entry in one if entry[2] == 0] == [entry for entry in other if entry[2] == 0]


def test_the_report_has_what_was_asked_what_came_out_and_what_was_left_out():
    report = plan_draw({"a": 300, "b": 100}, Mixture(passes={"a": 0.5, "b": 6})).report()
    assert report["sources"] == {
        "a": {"passes": 0.5, "asked": 0.2, "realised": 0.2, "left_out": 150},
        "b": {"passes": 6.0, "asked": 0.8, "realised": 0.8, "left_out": 0},
    }


@pytest.mark.parametrize(
    ("available", "settings", "message"),
    [
        ({"a": 1}, {"passes": {"b": 2}}, "names 'b', which is no source"),
        ({"a": 1, "b": 1}, {"weights": {"a": 2}}, "does not name b"),
        ({"a": 1, "b": 0}, {"weights": {"a": 2, "b": 1}}, "'b', which has none"),
        ({"a": 1}, {"weights": {"a": 1}, "temperature": 2.0}, "weights and temperature"),
        ({"a": 1}, {"passes": {"a": -1.0}}, r"passes\.a: Input should be greater than 0"),
        (
            {"a": 1},
            {"temperature": float("nan")},
            r"temperature: Input should be ",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(available, settings, message):
    with pytest.raises(ConfigError, match=message):
        plan_draw(available, read_settings(Mixture, settings))
