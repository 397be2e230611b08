"""Hidden states and embedded inputs of a plain forward, beside the layers' own inputs and outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind, small_casa
from tests.support.core.hf_rows import Side, padded, three_rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion", ["ca", "casa-image-ffn", "casa-replace", "insertion", "qformer"])
@torch.no_grad()
def test_hidden_states_are_embeddings_layers_and_the_final_norm(
    fusion: str, backbone: BackboneKind, side: Side
):
    model, inputs = small_casa(backbone, **FUSIONS[fusion]), padded(three_rows(), side)
    seen: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
        for layer in (*model.language_model.layers, model.language_model.norm)
    ]
    output = model(**inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    states, real = output.hidden_states, inputs["attention_mask"].bool()
    assert len(states) == len(model.language_model.layers) + 1
    assert {tuple(state.shape) for state in states} == {(3, 12, 32)}
    assert not any(state[~real].any() for state in states)
    assert torch.equal(states[0][real], model.language_model.embed_tokens(inputs["input_ids"])[real])
    assert torch.equal(model.lm_head(states[-1])[real], output.logits[real])
    if model.rules.fusion.inserts:  # layers read images among the texts: see the next test
        return
    for state, expected in zip(states[1:-1], seen[:-2], strict=True):
        assert torch.equal(state[real], expected[0])
    assert torch.equal(states[-1][real], seen[-1].view(-1, 32))
    assert model(**inputs).hidden_states is None


@pytest.mark.parametrize("fusion", ["casa", "insertion", "qformer"])
@torch.no_grad()
def test_hidden_states_of_padded_rows_are_those_of_each_row_alone(fusion: str):
    model, inputs = small_casa(**FUSIONS[fusion]), padded(three_rows())
    together = model(**inputs, output_hidden_states=True).hidden_states
    for number, one in enumerate(three_rows()):
        alone = model(**padded([one]), output_hidden_states=True).hidden_states
        for all_rows, own in zip(together, alone, strict=True):
            torch.testing.assert_close(all_rows[number, -len(one.ids) :], own[0], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("fusion", ["ca", "insertion"])
def test_embedded_tokens_stand_in_the_place_of_ids_and_get_a_gradient(fusion: str):
    model, inputs = small_casa(**FUSIONS[fusion]), padded(three_rows())
    labels = inputs["input_ids"].clone()
    expected = model(**inputs, labels=labels)
    expected.loss.backward()
    by_table = model.language_model.embed_tokens.weight.grad.clone()

    ids = inputs.pop("input_ids")
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    output = model(inputs_embeds=embedded, **inputs, labels=labels)
    assert torch.equal(output.logits, expected.logits)
    output.loss.backward()
    gradient: Any = embedded.grad
    assert not gradient[~inputs["attention_mask"].bool()].any()
    summed = torch.zeros_like(by_table).index_add(0, ids.flatten(), gradient.flatten(0, 1))
    torch.testing.assert_close(summed, by_table, rtol=1e-4, atol=1e-6)


def test_hidden_states_carry_gradients_and_come_in_a_tuple_too():
    model, inputs = small_casa(), padded(three_rows())
    logits, states = model(**inputs, output_hidden_states=True, return_dict=False)
    assert logits.shape == (3, 12, 50)
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == len(states)
    assert model(**inputs, output_hidden_states=False).hidden_states is None
    states[1].sum().backward()
    assert model.language_model.layers[0].mlp.up_proj.weight.grad.any()
    assert model.language_model.layers[1].mlp.up_proj.weight.grad is None


@torch.no_grad()
def test_generate_without_a_cache_returns_the_states_of_each_step():
    model: Any = small_casa()
    inputs = padded(three_rows())
    settings = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "use_cache": False}
    made = model.generate(**inputs, **settings, output_hidden_states=True)
    plain = model(**inputs, output_hidden_states=True)
    assert len(made.hidden_states) == 2
    for one, other in zip(made.hidden_states[0], plain.hidden_states, strict=True):
        assert torch.equal(one, other)
