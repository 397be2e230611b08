"""Every fusion on every backbone: as written token by token, packed as alone, silent as its backbone."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from tests.support.core.fusions import BACKBONES, FUSIONS, inserts, model_of, replaces
from tests.support.core.layouts import Document, Outline, ids_of, images_of, packs
from tests.support.core.models import WIDTH, BackboneName, sizes_of, small_model, text_config, weights_of
from tests.support.core.runs import (
    OUTLINES,
    assert_same_gradients,
    base_logits,
    base_of,
    documents_of,
    each_documents,
    flat,
    gradients_of,
    logits_of,
    masks_of,
    relative,
    trained,
)
from tests.support.naive.fusion import naive_logits, naive_loss

FEW = settings(max_examples=2, deadline=None, derandomize=True)
every_fusion = pytest.mark.parametrize("name", FUSIONS)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def check_logits(name: str, backbone: BackboneName, shapes: list[Outline], seed: int) -> None:
    """In float64, to 1e-10."""
    model = model_of(name, backbone, torch.float64)
    documents = documents_of(shapes, seed)
    with torch.no_grad():
        expected = [naive_logits(items, weights_of(model), sizes_of(model)) for items in documents]
        ours = logits_of(model, documents)
    torch.testing.assert_close(ours, torch.cat(expected), rtol=0, atol=1e-10)


def check_training(name: str, backbone: BackboneName, shapes: list[Outline], seed: int) -> None:
    """In float32, logits and loss to 1e-5 of their norm and gradients to 1e-4, images' too."""
    model = model_of(name, backbone, torch.float32)
    model.zero_grad()
    documents = documents_of([*shapes, [0, (2, 2), 0, 0]], seed)  # always something to see and to learn
    masks = masks_of(documents, seed)
    ours, theirs = with_gradients(documents), with_gradients(documents)
    output = trained(model, ours, masks)
    output.loss.backward()

    weights = weights_of(model)
    logits_TV = torch.cat([naive_logits(items, weights, sizes_of(model)) for items in theirs])
    loss = naive_loss(logits_TV, list(chain.from_iterable(map(ids_of, documents))), flat(masks))
    loss.backward()
    targets = torch.tensor(flat(masks)).nonzero()[:, 0]
    assert relative(output.logits, logits_TV[targets - 1]) < 1e-5
    assert relative(output.loss, loss) < 1e-5
    expected = {name: weights[name].grad for name, _ in model.named_parameters()}
    assert_same_gradients(gradients_of(model), expected, 1e-4)
    assert_same_gradients(gradients_of_images(ours), gradients_of_images(theirs), 1e-4)


@every_backbone
@every_fusion
@FEW
@given(shapes=packs(), seed=st.integers(0, 9))
@example(shapes=OUTLINES, seed=0)
def test_the_logits_are_those_written_token_by_token(
    name: str, backbone: BackboneName, shapes: list[Outline], seed: int
):
    check_logits(name, backbone, shapes, seed)


@every_backbone
@every_fusion
@settings(FEW, max_examples=1)
@given(shapes=packs(max_documents=2, max_items=4), seed=st.integers(0, 9))
@example(shapes=OUTLINES, seed=0)
def test_in_single_precision_so_are_the_loss_and_every_gradient(
    name: str, backbone: BackboneName, shapes: list[Outline], seed: int
):
    check_training(name, backbone, shapes, seed)


@pytest.mark.slow
@every_backbone
@every_fusion
@settings(max_examples=20, deadline=None)
@given(shapes=packs(max_documents=4, max_items=9), seed=st.integers(0, 1000))
def test_so_they_are_on_many_layouts_never_the_same(
    name: str, backbone: BackboneName, shapes: list[Outline], seed: int
):
    check_logits(name, backbone, shapes, seed)
    check_training(name, backbone, shapes, seed)


def with_gradients(documents: list[Document]) -> list[Document]:
    """The same documents; their image tokens are leaves that gather gradients."""
    return [
        [item if isinstance(item, int) else item.clone().requires_grad_() for item in items]
        for items in documents
    ]


def gradients_of_images(documents: list[Document]) -> dict[str, torch.Tensor | None]:
    images = chain.from_iterable(map(images_of, documents))
    return {f"image {number}": image.grad for number, image in enumerate(images)}


@every_backbone
@every_fusion
def test_a_packed_batch_has_the_loss_and_gradients_of_its_documents_one_by_one(
    name: str, backbone: BackboneName
):
    documents = documents_of(OUTLINES)
    masks = masks_of(documents)
    model = model_of(name, backbone, torch.float32)
    model.zero_grad()
    together = trained(model, documents, masks)
    together.loss_sum.backward()
    packed = gradients_of(model)
    model.zero_grad()
    alone = [trained(model, [items], [mask]) for items, mask in zip(documents, masks, strict=True)]
    loss_sum = sum(one.loss_sum for one in alone)
    loss_sum.backward()
    torch.testing.assert_close(together.loss_sum, loss_sum, rtol=1e-6, atol=0)
    assert together.trained_tokens == sum(one.trained_tokens for one in alone) == sum(flat(masks))
    assert_same_gradients(packed, gradients_of(model), 1e-5)


@pytest.mark.parametrize("edited", range(len(OUTLINES)))
@every_backbone
@every_fusion
def test_an_edit_of_one_document_leaves_the_others_bit_for_bit_alone(
    name: str, backbone: BackboneName, edited: int
):
    model = model_of(name, backbone, torch.float32)
    documents = documents_of(OUTLINES)
    with torch.no_grad():
        before = each_documents(logits_of(model, documents), documents)
        documents[edited] = documents_of([OUTLINES[edited]], seed=1)[0]
        after = each_documents(logits_of(model, documents), documents)
    for number in range(len(documents)):
        assert torch.equal(before[number], after[number]) == (number != edited)


@every_backbone
@every_fusion
def test_a_document_that_grows_leaves_the_others_alone(name: str, backbone: BackboneName):
    model = model_of(name, backbone, torch.float32)
    documents = documents_of(OUTLINES)
    with torch.no_grad():
        before = each_documents(logits_of(model, documents), documents)
        documents[0] = [*documents[0], torch.ones(3, 2, WIDTH, dtype=torch.float64), 3, 4]
        after = each_documents(logits_of(model, documents), documents)
    for number in (1, 2):
        assert relative(after[number], before[number]) < 1e-6


@every_backbone
@every_fusion
def test_without_images_it_is_its_backbone(name: str, backbone: BackboneName):
    model = model_of(name, backbone, torch.float32)
    (items,) = documents_of([[0] * 7])
    with torch.no_grad():
        ours, theirs = logits_of(model, [items]), base_logits(model, items)
    if replaces(name):  # the same attention, by way of another layer
        assert relative(ours, theirs) < 1e-6
    else:
        assert torch.equal(ours, theirs)


@every_backbone
@every_fusion
def test_text_sees_an_image_from_the_token_that_follows_it(name: str, backbone: BackboneName):
    model = model_of(name, backbone, torch.float32)
    (items,) = documents_of([[0, 0, (2, 2), 0, 0]])
    with torch.no_grad():
        ours, theirs = logits_of(model, [items]), base_logits(model, items)
    assert relative(ours[:2], theirs[:2]) < 1e-6
    assert (ours[2:] - theirs[2:]).abs().amax(dim=1).min() > 1e-2


def silent(fields: dict[str, Any]) -> dict[str, Any]:
    """A fusion that adds nothing at first: a tanh gate starts shut, otherwise the output starts at zero."""
    return fields if fields.get("gate") == "tanh" else {**fields, "init": "zero_output"}


SILENT = {
    name: silent(fields)
    for name, fields in FUSIONS.items()
    if not (inserts(name) or replaces(name) or fields.get("shared_projections"))
} | {"CA, shared, tanh gate": {"shared_projections": True, "gate": "tanh"}}


@every_backbone
@pytest.mark.parametrize("name", SILENT)
def test_a_silent_start_is_the_backbone_with_images_in_sight_and_can_learn(name: str, backbone: BackboneName):
    model = small_model(torch.float32, backbone, **SILENT[name])
    model.initialize_fusion()
    (items,) = documents_of(OUTLINES[:1])
    logits = logits_of(model, [items])
    assert torch.equal(logits, base_logits(model, items))
    logits.square().sum().backward()
    for index in sizes_of(model).fused_layers:
        fusion = model.language_model.layers[index].fusion
        opens = fusion.gate_alpha if SILENT[name].get("gate") == "tanh" else fusion.o_proj.weight
        assert opens.grad.any()


# ---- The references themselves, against transformers ----


@every_backbone
def test_the_reference_reads_text_as_transformers_does(backbone: BackboneName):
    model = model_of("insertion", backbone, torch.float64)
    (items,) = documents_of([[0] * 7])
    with torch.no_grad():
        reference = naive_logits(items, weights_of(model), sizes_of(model))
        assert relative(reference, base_logits(model, items)) < 1e-6  # which norms in single precision


def test_the_reference_inserts_images_as_transformers_qwen_does():
    model = model_of("insertion", "qwen2_5_vl_text", torch.float64)
    (items,) = documents_of([[0, 0, (2, 3), 0, (3, 1), 0, 0]])
    embedded = [
        model.get_input_embeddings()(torch.tensor([item])) if isinstance(item, int) else item.flatten(0, 1)
        for item in items
    ]
    is_image = torch.cat([torch.full((len(part),), len(part) > 1) for part in embedded])
    vision = Qwen2_5_VLVisionConfig(depth=1, hidden_size=16, num_heads=2, spatial_merge_size=1)
    config = Qwen2_5_VLConfig(text_config=text_config("qwen2_5_vl_text"), vision_config=vision)
    position_ids, _ = Qwen2_5_VLModel(config).get_rope_index(
        input_ids=torch.zeros(1, len(is_image), dtype=torch.long),
        mm_token_type_ids=is_image[None].int(),
        image_grid_thw=torch.tensor([(1, *image.shape[:2]) for image in images_of(items)]),
    )
    with torch.no_grad():
        stream = torch.cat(embedded)[None]
        hidden = base_of(model)(inputs_embeds=stream, position_ids=position_ids, use_cache=False)
        theirs = model.lm_head(hidden.last_hidden_state)[0][~is_image]
        reference = naive_logits(items, weights_of(model), sizes_of(model))
    assert relative(reference, theirs) < 1e-6
