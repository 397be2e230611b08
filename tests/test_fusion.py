"""The fused forward against one written token by token, and packing against documents run one by one."""

from __future__ import annotations

from itertools import chain
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from casa_core.batch import collate
from casa_core.fusion.attention import Backend
from casa_core.model import CasaForConditionalGeneration
from tests.support.core_layouts import Document, document, outlines, sequence
from tests.support.core_models import WIDTH, exactly_in_float64, sizes_of, small_model, weights_of
from tests.support.naive_helium import naive_logits

# Leading text, two consecutive pictures, text between pictures; no picture at all; a picture first and last.
OUTLINES = [[0, 0, 3, 2, 0, 0, 4, 0], [0, 0, 0], [5, 0, 0, 1, 0]]


def documents_of(outlines: list[list[int]], seed: int = 0) -> list[Document]:
    generator = torch.Generator().manual_seed(seed)
    return [document(outline, WIDTH, generator) for outline in outlines]


def logits_of(model: CasaForConditionalGeneration, documents: list[Document]) -> torch.Tensor:
    """(text tokens, vocabulary) of the documents packed into one sequence."""
    return model(**inputs_of(documents, model.dtype)).logits[0]


def inputs_of(documents: list[Document], dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    batch = collate([sequence(documents, dtype=dtype)])
    return {**batch.inputs(), "loss_mask": None, **changes}


def lengths_of(documents: list[Document]) -> list[int]:
    return [sum(isinstance(item, int) for item in items) for items in documents]


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    ours, expected = ours.detach().double(), expected.detach().double()
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("layers", ["all", (1,)])
def test_the_fused_forward_is_the_one_written_token_by_token(backend: Backend, layers: Any):
    model = exactly_in_float64(small_model(layers=layers))
    model.attention_backend = backend
    documents = documents_of(OUTLINES)
    expected = [naive_logits(items, weights_of(model), sizes_of(model)) for items in documents]
    torch.testing.assert_close(logits_of(model, documents), torch.cat(expected), rtol=0, atol=1e-10)


@settings(max_examples=8, deadline=None)
@given(shapes=st.lists(outlines(max_items=6), min_size=1, max_size=3), seed=st.integers(0, 9))
def test_so_it_is_for_any_documents(shapes: list[list[int]], seed: int):
    model = exactly_in_float64(small_model())
    documents = documents_of(shapes, seed)
    expected = [naive_logits(items, weights_of(model), sizes_of(model)) for items in documents]
    torch.testing.assert_close(logits_of(model, documents), torch.cat(expected), rtol=0, atol=1e-10)


def test_in_single_precision_the_logits_and_every_gradient_are_those_of_the_naive_forward():
    model = small_model(torch.float32)
    documents = documents_of(OUTLINES)
    weights = weights_of(model)
    expected = torch.cat([naive_logits(items, weights, sizes_of(model)) for items in documents])
    ours = logits_of(model, documents)
    assert relative(ours, expected) < 1e-5
    labels = torch.randint(expected.shape[1], (len(expected),), generator=torch.Generator().manual_seed(1))
    cross_entropy(ours, labels).backward()
    cross_entropy(expected, labels).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, weights[name].grad) < 1e-4, name


def test_a_packed_batch_has_the_loss_and_gradients_of_its_documents_one_by_one():
    documents = documents_of(OUTLINES)
    masks = [[place % 2 == 1 for place in range(length)] for length in lengths_of(documents)]
    together, alone = small_model(), small_model()
    packed = sequence(documents, list(chain.from_iterable(masks)))
    apart = [sequence([items], mask) for items, mask in zip(documents, masks, strict=True)]
    output = together(**collate([packed]).inputs())
    output.loss_sum.backward()
    outputs = [alone(**collate([one]).inputs()) for one in apart]
    loss_sum = sum(one.loss_sum for one in outputs)
    loss_sum.backward()
    # Norms round to float32, and sums in another order differ in its last digits.
    torch.testing.assert_close(output.loss_sum, loss_sum, rtol=1e-6, atol=0)
    assert output.trained_tokens == sum(one.trained_tokens for one in outputs) == sum(map(sum, masks))
    assert output.loss == output.loss_sum / output.trained_tokens
    for (name, mine), theirs in zip(together.named_parameters(), alone.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < 1e-6, name


def test_several_sequences_in_a_batch_are_one_sequence_of_all_their_documents():
    documents = documents_of(OUTLINES)
    model = small_model()
    apart = collate([sequence(documents[:1]), sequence(documents[1:])])
    expected = logits_of(model, documents)
    assert torch.equal(model(**{**apart.inputs(), "loss_mask": None}).logits[0], expected)


def test_a_word_changed_in_one_document_leaves_the_others_bit_for_bit_alone():
    model = small_model(torch.float32)
    documents = documents_of(OUTLINES)
    before = logits_of(model, documents).split(lengths_of(documents))
    assert isinstance(documents[0][0], int)
    documents[0][0] = (documents[0][0] + 1) % 7
    after = logits_of(model, documents).split(lengths_of(documents))
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


def test_a_document_that_grows_leaves_the_others_alone():
    model = small_model(torch.float32)
    documents = documents_of(OUTLINES)
    before = logits_of(model, documents).split(lengths_of(documents))
    documents[0] = [*documents[0], torch.ones(7, WIDTH, dtype=torch.float64), 3, 4]
    after = logits_of(model, documents).split(lengths_of(documents))
    for number in (1, 2):
        torch.testing.assert_close(after[number], before[number], rtol=0, atol=1e-5)


def test_a_picture_changes_the_text_of_its_own_window_and_what_attends_to_it_only():
    model = small_model(torch.float32)
    (items,) = documents_of([[0, 0, 3, 0, 0, 2, 0]])
    before = logits_of(model, [items])
    picture = items[2]
    assert isinstance(picture, torch.Tensor)
    items[2] = picture + 1
    changed = (logits_of(model, [items]) != before).any(dim=1)
    assert changed.tolist() == [False, False, True, True, True]


def test_pictures_reach_the_text_only_through_keys_and_values():
    # Unlike insertion: no image token takes a place in the text, its positions or its logits.
    model = small_model()
    documents = documents_of(OUTLINES)
    assert len(logits_of(model, documents)) == sum(lengths_of(documents))
    assert inputs_of(documents, model.dtype)["position_ids"].tolist()[0] == [*range(5), *range(3), *range(3)]
