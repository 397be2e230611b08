"""Masked attention (Table 8), attention by kind (Figure 7) and attention maps, against naive forwards."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

from casa_core.analysis.attention_stats import AttentionTable, attention_by_kind
from casa_core.analysis.forward import log_likelihood, read_whole
from casa_core.analysis.maps import attention_maps
from casa_core.analysis.masking import MASKINGS, Masking, masked_attention, masked_position
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.errors import ConfigError, DataError
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.engine import pieces
from tests.support.core.fusions import model_of
from tests.support.core.layouts import Document, Outline
from tests.support.core.models import BackboneName
from tests.support.core.runs import OUTLINES, documents_of, each_documents, logits_of, relative
from tests.support.naive.analysis import Weighed, extension_of, naive_logits_of, opened

# Leading text, two pictures side by side, more text, another picture; and a picture first.
LONG: Outline = [0, (2, 3), (1, 2), 0, 0, 0, 0, (2, 2), 0, 0, 0]
SHORT: Outline = [(3, 1), 0, 0]
EXACT = 1e-10

every_masking = pytest.mark.parametrize("what", MASKINGS)


def casa(name: str = "CASA ⊕", backbone: BackboneName = "helium") -> CasaForConditionalGeneration:
    return model_of(name, backbone, torch.float64)


# ---- Masking ----


@every_masking
@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("CASA ⊕", "helium"),
        ("CASA ⊕", "qwen2_5_vl_text"),
        ("CASA in one layer, gated", "helium"),
        ("CASA, shared, image FFNs", "helium"),
        ("CASA replacing", "helium"),
    ],
)
def test_masked_attention_is_attention_without_that_token(what: Masking, name: str, backbone: BackboneName):
    """Packed, with documents of every shape: among them a token that is left with nothing to attend to."""
    model, documents = casa(name, backbone), documents_of(OUTLINES)
    with torch.inference_mode(), masked_attention(model, what, seed=3):
        ours = each_documents(logits_of(model, documents), documents)
    with opened(partial(masked_position, what, 3)):
        expected = [naive_logits_of(model, document) for document in documents]
    for logits_TV, expected_TV in zip(ours, expected, strict=True):
        assert relative(logits_TV, expected_TV) < EXACT


def test_a_token_left_with_nothing_to_attend_to_is_not_updated():
    """∨: the first token of a text without a picture sees itself alone."""
    model = casa("CASA replacing")
    updates: list[torch.Tensor] = []
    handle = model.fused_layers()[0].self_attn.o_proj.register_forward_hook(
        lambda _module, _inputs, out: updates.append(out.flatten(0, 1))
    )
    with handle, torch.inference_mode():
        for what in MASKINGS:
            with masked_attention(model, what):
                read_whole(model, TokenChunk([5, 6]))
    zero = [[not row.any() for row in update] for update in updates]
    # The second token can lose the first, or itself; nothing precedes the first.
    assert zero == [[True, False], [False, False], [False, False]]


@every_masking
def test_masking_does_not_depend_on_how_the_text_was_cut(what: Masking):
    model = casa()
    whole = extension_of(documents_of([LONG])[0])
    with torch.inference_mode(), masked_attention(model, what, seed=5):
        expected_TV = logits_of(model, documents_of([LONG]))
        for cuts in [(1,), (3,), (2, 4), (1, 2, 3, 4, 5, 6, 7), *combinations(range(1, 8), 3)]:
            cached = KVBatch(model, 1)
            for piece in pieces(whole, cuts):
                last_BV = cached.extend([piece])
            assert relative(last_BV[0], expected_TV[-1]) < EXACT, cuts


@every_masking
def test_masking_does_not_depend_on_who_is_decoded_beside(what: Masking):
    """Rows of different lengths, padded, one with its window carried over."""
    model = casa()
    documents = documents_of([LONG, SHORT])
    long, short = map(extension_of, documents)
    with torch.inference_mode(), masked_attention(model, what, seed=5):
        cached = KVBatch(model, 2)
        first, second = pieces(long, [6])
        cached.extend([first, short])
        ours_BV = cached.extend([second, TokenChunk([7])])
        expected = [logits_of(model, [document])[-1] for document in (documents[0], [*documents[1], 7])]
    assert relative(ours_BV, torch.stack(expected)) < EXACT


def test_a_model_is_itself_again_after_masking():
    model, documents = casa(), documents_of([LONG])
    with torch.inference_mode():
        before = logits_of(model, documents)
        with masked_attention(model, "self"):
            assert relative(logits_of(model, documents), before) > 1e-3
        with pytest.raises(ZeroDivisionError), masked_attention(model, "self"):
            _ = 1 / 0
        assert torch.equal(logits_of(model, documents), before)


def test_the_seed_decides_random_masking_alone():
    model, documents = casa(), documents_of([LONG])

    def masked(what: Masking, seed: int) -> torch.Tensor:
        with torch.inference_mode(), masked_attention(model, what, seed):
            return logits_of(model, documents)

    for what in MASKINGS:
        assert torch.equal(masked(what, 0), masked(what, 0))
        assert torch.equal(masked(what, 0), masked(what, 1)) == (what == "self")


def test_a_random_place_is_a_past_one_of_the_kind_asked_for():
    for number in range(40):
        for seed in range(5):
            assert masked_position("self", seed, 3, number) == 3 + number
            text = masked_position("random_text", seed, 3, number)
            assert text is None if number == 0 else 3 <= text < 3 + number  # type: ignore[operator]
            token = masked_position("random_token", seed, 3, number)
            assert token is not None
            assert 0 <= token < 3 + number
    assert masked_position("random_token", 0, 0, 0) is None


def test_random_places_are_spread_evenly():
    drawn = Counter(masked_position("random_token", seed, 6, 4) for seed in range(5000))
    assert set(drawn) == set(range(10))
    # Each place is binomial with mean 500 and standard deviation 21.
    assert all(abs(count - 500) < 5 * 21.3 for count in drawn.values())


@pytest.mark.parametrize(
    ("name", "why"),
    [("CA ⊕", "attend to image tokens alone"), ("insertion", "no fusion layers"), ("Q-Former", "no fusion")],
)
def test_models_without_text_keys_refuse_to_be_masked(name: str, why: str):
    with pytest.raises(ConfigError, match=r"fusion\.kind") as refusal, masked_attention(casa(name), "self"):
        pass
    assert why in str(refusal.value)


def test_unknown_maskings_and_two_analyses_at_once_are_refused():
    model = casa()
    with pytest.raises(ConfigError, match="'random_text'"), masked_attention(model, "others"):  # type: ignore[arg-type]
        pass
    with (
        pytest.raises(ConfigError, match="already"),
        masked_attention(model, "self"),
        masked_attention(model, "self"),
    ):
        pass
    assert model.attention_probe is None


# ---- Attention by kind ----

DELIMITERS = frozenset(range(1, 12))
"""Among the 39 ids of small documents: some of them."""


def naive_table(model: CasaForConditionalGeneration, documents: list[Document], group: int) -> dict:
    """Every average in plain loops: kind → lists of shares and of per-token means, one entry a query."""
    shares, singles = defaultdict(list), defaultdict(list)
    for document in documents:
        ids = [item for item in document if isinstance(item, int)]
        places = group_of_each_image_place(document, group)
        with opened() as record:
            naive_logits_of(model, document)
        for one in record.weighed:
            if one.images:
                for kind, weights in sorted_out(one, ids, places[one.first]).items():
                    shares[one.layer, kind].append(sum(weights))
                    if weights:
                        singles[one.layer, kind].append(sum(weights) / len(weights))
    return {"shares": shares, "singles": singles}


def group_of_each_image_place(document: Document, group: int) -> dict[int, list[int]]:
    """First text token of a window → the group of each of its image places."""
    places: dict[int, list[int]] = defaultdict(list)
    text = 0
    for item in document:
        if isinstance(item, int):
            text += 1
        else:
            places[text] += [n // group for n in range(item.shape[0] * item.shape[1])]
    return places


def sorted_out(one: Weighed, ids: list[int], groups: list[int]) -> dict[object, list[float]]:
    kinds: dict[object, list[float]] = {"delimiter": [], "image": [], "text": [], "itself": [], "any": []}
    kinds |= {number: [] for number in range(9)}
    for place, weight in enumerate(one.weights):
        kinds["any"].append(weight)
        if place < one.images:
            kinds["image"].append(weight)
            kinds[groups[place]].append(weight)
            continue
        token = one.first + place - one.images
        kind = "itself" if token == one.token else "delimiter" if ids[token] in DELIMITERS else "text"
        kinds[kind].append(weight)
    return kinds


def assert_same(table: AttentionTable, naive: dict) -> None:
    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    def gathered(name: str, kind: object, layers: list[int]) -> list[float]:
        return [value for layer in layers for value in naive[name][layer, kind]]

    everywhere = sorted({layer for layer, _ in naive["shares"]})
    assert sorted(table.layers) == everywhere
    for layers, kinds in [(everywhere, table.whole), *(([n], table.layers[n]) for n in everywhere)]:
        named = {kind: getattr(kinds, kind) for kind in ("delimiter", "image", "text", "itself")}
        for kind, found in [*named.items(), *enumerate(kinds.image_groups)]:
            share, single = (
                mean(gathered("shares", kind, layers)),
                mean(gathered("singles", kind, layers)),
            )
            assert found.share == pytest.approx(share, abs=1e-12), kind
            assert found.per_token == (None if single is None else pytest.approx(single, abs=1e-12)), kind
        assert sum(one.share for one in named.values()) == pytest.approx(1, abs=1e-12)
        assert sum(one.share for one in kinds.image_groups) == pytest.approx(kinds.image.share, abs=1e-12)
    assert table.even == pytest.approx(mean(gathered("singles", "any", everywhere)), abs=1e-12)
    assert table.queries == len(naive["shares"][everywhere[0], "any"])


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("CASA ⊕", "helium"),
        ("CASA ⊕", "qwen2_5_vl_text"),
        ("CASA replacing two of three layers", "helium"),
        ("CASA in one layer, gated", "helium"),
        ("CA ⊕", "helium"),
    ],
)
@pytest.mark.parametrize("group", [1, 2, 16])
def test_averages_by_kind_are_those_of_plain_loops(name: str, backbone: BackboneName, group: int):
    model, documents = casa(name, backbone), documents_of([LONG, SHORT, [0, (2, 2), 0]], seed=4)
    table = attention_by_kind(model, map(extension_of, documents), delimiters=DELIMITERS, group=group)
    assert_same(table, naive_table(model, documents, group))
    assert (table.sequences, table.images) == (3, 5)


def test_a_delimiter_that_looks_at_itself_counts_as_itself():
    """A picture of one token and the delimiter after it: two places, and no other text."""
    image = torch.randn(1, 1, 24, dtype=torch.float64)
    table = attention_by_kind(casa(), [extension_of([image, 3])], delimiters=[3])
    assert table.whole.delimiter.per_token is None
    assert table.whole.text.per_token is None
    assert table.whole.itself.share + table.whole.image.share == pytest.approx(1)
    assert table.even == 0.5


def test_with_cross_attention_images_get_it_all():
    table = attention_by_kind(casa("CA ⊕"), [extension_of(documents_of([SHORT])[0])], group=1)
    assert table.whole.image.share == pytest.approx(1)
    assert table.whole.image.per_token == pytest.approx(1 / 3)
    assert table.whole.itself.share == 0
    assert table.whole.itself.per_token is None
    assert len(table.whole.image_groups) == 3


def test_sequences_are_read_one_by_one_and_not_kept():
    seen: list[weakref.ref[torch.Tensor]] = []

    def sequences():
        for seed in range(6):
            sequence = extension_of(documents_of([LONG], seed)[0])
            seen.append(weakref.ref(sequence.patches_PE[0]))
            yield sequence
            del sequence
            assert sum(ref() is not None for ref in seen) <= 1

    attention_by_kind(casa(), sequences())
    assert len(seen) == 6


def test_looking_changes_nothing():
    model, sequence = casa(), extension_of(documents_of([LONG])[0])
    logits: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda _module, _inputs, output: logits.append(output.logits))
    with handle:
        read_whole(model, sequence)
        attention_by_kind(model, [sequence])
    before, watched = logits
    assert torch.equal(before, watched)


@pytest.mark.parametrize(
    ("name", "outline", "group", "error", "message"),
    [
        ("insertion", LONG, 16, ConfigError, "no fusion layers"),
        ("CASA ⊕", [0, 0], 16, DataError, "No text token of 1 sequences attends to an image"),
        ("CASA ⊕", LONG, 0, ConfigError, "`group` = 0"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    name: str, outline: Outline, group: int, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        attention_by_kind(casa(name), [extension_of(documents_of([outline])[0])], group=group)


# ---- Maps and likelihoods ----


@pytest.mark.parametrize("name", ["CASA ⊕", "CA ⊕"])
def test_a_map_is_the_attention_to_each_image_token_in_its_place(name: str):
    """Asked about: a token before every picture, one beside two of them, one beside the last."""
    model, document = casa(name), documents_of([LONG])[0]
    maps = attention_maps(model, extension_of(document), [0, 3, 6])
    with opened() as record:
        naive_logits_of(model, document)

    def expected(token: int, *layers: int) -> np.ndarray:
        own = [one for one in record.weighed if one.token == token and one.layer in layers]
        return np.mean([one.weights[: one.images] for one in own], axis=0)

    none, beside_two, beside_last = maps.tokens
    assert none == {}
    assert [image.shape for image in beside_two.values()] == [(2, 3), (1, 2)]
    assert list(beside_last) == [2]
    for token, images in ((3, beside_two), (6, beside_last)):
        assert flat_map(images) == pytest.approx(expected(token, 0, 1), abs=1e-12)
    for layer in (0, 1):
        assert flat_map(maps.layers[layer])[:8] == pytest.approx(expected(3, layer), abs=1e-12)
        assert flat_map(maps.layers[layer])[8:] == pytest.approx(expected(6, layer), abs=1e-12)


def flat_map(images: dict[int, np.ndarray]) -> np.ndarray:
    return np.concatenate([image.flatten() for image in images.values()])


def test_a_layers_map_is_the_mean_of_its_tokens():
    model, document = casa(), documents_of([LONG])[0]
    sequence = extension_of(document)
    apart = [attention_maps(model, sequence, [token]).layers[1][0] for token in (2, 3)]
    together = attention_maps(model, sequence, [2, 3]).layers[1][0]
    assert together == pytest.approx(np.mean(apart, axis=0), abs=1e-12)


def test_tokens_outside_the_sequence_have_no_map():
    with pytest.raises(DataError, match="Token 9"):
        attention_maps(casa(), extension_of(documents_of([SHORT])[0]), [9])


def test_a_likelihood_is_the_mean_log_probability_of_the_counted_tokens():
    model, document = casa(), documents_of([LONG])[0]
    ids = [item for item in document if isinstance(item, int)]
    logits_TV = naive_logits_of(model, document)
    expected = [float(logits_TV[place - 1].log_softmax(0)[ids[place]]) for place in (2, 5)]
    # The model's loss is taken in float32.
    assert log_likelihood(model, extension_of(document), [2, 5]) == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize("counted", [[], [0], [2, 99]])
def test_what_has_no_likelihood_is_refused(counted: list[int]):
    with pytest.raises(DataError, match="counted"):
        log_likelihood(casa(), extension_of(documents_of([LONG])[0]), counted)
