"""Operations of a training step: against torch's counter, and against pairs counted one by one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from casa_core.batch import collate
from casa_core.flops import Load, step_flops
from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from pipelines.cost.synthetic import SequenceShape, random_batch, random_sequence
from pipelines.recipe.load import load_recipe
from pipelines.train.model_config import model_config, training_stage

IMAGES = SequenceShape(text_tokens=200, images=10, side=2, patch_values=1176, documents=10)
VIDEO = SequenceShape(text_tokens=90, images=7, side=3, patch_values=1176, documents=1)


@pytest.mark.parametrize(
    "recipe",
    [
        "ca-helium1",
        "ca-helium1-image-ffn",
        "casa-helium1-replace",
        "helium1-insertion",
        "helium1-qformer32",
        "casa-qwen-video",
    ],
)
def test_where_attention_is_small_they_are_those_that_torch_counts(recipe: str):
    loaded = load_recipe(recipe)
    config = model_config(loaded.model, vocab_size=512, pad_token_id=0, eos_token_id=1, scale="small")
    stage = training_stage(loaded.train)
    torch.manual_seed(0)
    model = CasaForConditionalGeneration(config).train()
    parameter_groups(model, stage)
    batch = random_batch(IMAGES, 1, 512, torch.Generator().manual_seed(0)).batch
    with FlopCounterMode(display=False) as counter:
        model(**batch.inputs()).loss.backward()
    assert step_flops(config, stage, IMAGES.load) == pytest.approx(counter.get_total_flops(), rel=0.06)


def pairs_one_by_one(shape: SequenceShape) -> tuple[int, int, int]:
    """(text and earlier-or-same text of its document, text and images of its window, text and earlier-or-same
    text of its window), token by token; a window goes from an image to the next one or the document's end."""
    sequence = random_sequence(shape, 512, torch.Generator().manual_seed(0))
    text, windows = len(sequence.input_ids), []
    document, window = [], []
    for token in range(text):
        document.append(max(n for n, start in enumerate(sequence.document_starts) if start <= token))
        seen = [n for n, place in enumerate(sequence.image_positions) if place <= token]
        own = [n for n in seen if sequence.image_positions[n] >= sequence.document_starts[document[-1]]]
        last = sequence.image_positions[own[-1]] if own else None
        window.append((document[-1], last))
        windows.append([n for n in own if sequence.image_positions[n] == last])
    causal = sum(document[a] == document[b] for a in range(text) for b in range(a + 1))
    images = sum(sequence.image_tokens[n] for seen in windows for n in seen)
    inside = sum(window[a] == window[b] for a in range(text) for b in range(a + 1))
    return causal, images, inside


@pytest.mark.parametrize("shape", [IMAGES, VIDEO], ids=["images", "video"])
def test_pairs_are_those_of_documents_and_windows(shape: SequenceShape):
    load = shape.load
    causal, images, inside = pairs_one_by_one(shape)
    half_text = shape.text_tokens / 2  # a token's pair with itself counts whole there and half here
    assert (load.text_D**2).sum() / 2 == causal - half_text
    assert (load.text_W * load.image_tokens_W).sum() == images
    assert (load.text_W**2).sum() / 2 == inside - half_text


def test_a_batch_of_sequences_costs_what_they_cost_together():
    config = model_config(
        load_recipe("casa-helium1-before").model,
        vocab_size=512,
        pad_token_id=0,
        eos_token_id=1,
        scale="small",
    )
    stage = training_stage(load_recipe("casa-helium1-before").train)
    for shape in (IMAGES, VIDEO):
        batch = random_batch(shape, 3, 512, torch.Generator().manual_seed(0)).batch
        together = step_flops(config, stage, Load.of_batch(batch))
        assert together == pytest.approx(3 * step_flops(config, stage, shape.load), rel=1e-12)
    withheld = [random_sequence(IMAGES, 512, torch.Generator()).without_images()]
    assert 0 < step_flops(config, stage, Load.of_batch(collate(withheld))) < together
