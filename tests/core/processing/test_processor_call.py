"""The processor called as transformers' processors are: messages and pictures in, a padded batch out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import AutoProcessor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from casa_core.backbones.tiny import tiny_config
from casa_core.config import CasaConfig
from casa_core.errors import ConfigError, DataError, MediaError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, Sample, Text
from tests.support.core.engine import picture, png
from tests.support.data.media import encode

WORDS = "what is this and that a red circle system user assistant"


@pytest.fixture(scope="module")
def processor() -> CasaProcessor:
    return CasaProcessor(build_tokenizer([WORDS] * 3, 400))


@pytest.fixture(scope="module")
def qwen() -> CasaProcessor:
    """Qwen's template and tower settings; a frame of a video at half the side of a picture."""
    text = Qwen2_5_VLTextConfig(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    config = CasaConfig(text, Qwen2_5_VLVisionConfig(out_hidden_size=32))
    tokenizer = build_tokenizer([WORDS] * 3, 400, "qwen-1")
    return CasaProcessor.for_model(tokenizer, config, template="qwen-1", max_side=112, max_frame_side=56)


def ask(*content: Any) -> list[dict[str, Any]]:
    """A user's message; strings are its words, anything else a picture, ... one that is given apart."""
    parts: list[dict[str, Any]] = []
    for part in content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            parts.append({"type": "image"} if part is ... else {"type": "image", "image": part})
    return [{"role": "user", "content": parts}]


def test_rows_are_padded_on_the_left_and_positions_counted_in_the_padded_row(processor: CasaProcessor):
    rows = [ask(..., "what is this"), ask("what"), ask("this", ..., "and that", ...)]
    batch = processor(rows, images=[picture(0), picture(1, 16, 16), picture(2, 32, 64)])
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    width = batch["input_ids"].shape[1]
    assert width == max(lengths)
    assert len(set(lengths)) == 3
    assert batch["image_counts"].sum(dim=1).tolist() == [1, 0, 2]
    for row, length in enumerate(lengths):
        assert batch["attention_mask"][row].tolist() == [0] * (width - length) + [1] * length
        padding, real = batch["input_ids"][row].split([width - length, length])
        assert set(padding.tolist()) <= {processor.tokenizer.pad_token_id}
        assert processor.tokenizer.decode(real).endswith("<|end|><|assistant|>")
    assert set(batch["input_ids"][batch["image_counts"] > 0].tolist()) == {processor.image_id}
    assert batch["image_counts"].max() == 1
    assert batch["image_grid_thw"].tolist() == [[1, 6, 8], [1, 2, 2], [1, 4, 8]]
    assert batch["pixel_values"].shape == (48 + 4 + 32, 3 * 8 * 8)
    size = processor.image_size(16, 16)
    assert torch.equal(batch["pixel_values"][48:52], processor.patches(picture(1, 16, 16), size))


@pytest.mark.parametrize("template", ["casa-1", "qwen-1"])
@torch.no_grad()
def test_a_model_takes_the_batch_and_answers_each_row_as_alone(template: str):
    processor = CasaProcessor(build_tokenizer([WORDS] * 3, 400, template), template)
    config = tiny_config(
        vocab_size=len(processor.tokenizer),
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.end_id,
    )
    torch.manual_seed(0)
    model = CasaForConditionalGeneration(config).eval()
    rows = [ask(..., ..., "what is this"), ask("what"), ask("this", ...)]
    pictures = [[picture(0), picture(1)], [], [picture(2)]]
    together = model(**processor(text=rows, images=pictures, return_tensors="pt")).logits[:, -1]
    for row, own in enumerate(pictures):
        alone = model(**processor(rows[row], own)).logits[0, -1]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
    blind = model(**processor(ask("this"))).logits[0, -1]
    assert not torch.allclose(together[2], blind, atol=1e-2)


def test_one_conversation_can_be_spelled_in_many_ways(processor: CasaProcessor):
    sample = Sample(
        source="s", sample_id="1", parts=(Image(data=png(0)), Text(role="user", text="what is this"))
    )
    bare = Sample(source="s", sample_id="1", parts=(Image(), Text(role="user", text="what is this")))
    spellings = [
        processor(sample),
        processor([sample]),
        processor(bare, picture(0)),
        processor(ask(..., "what is this"), [png(0)]),
        processor([ask(..., "what is this")], images=[[png(0)]]),
        processor(ask(PILImage.fromarray(picture(0)), "what is this")),
        processor("what is this", images=picture(0)),
        processor(text=["what is this"], images=[picture(0)], return_tensors="pt", padding=True),
        processor.apply_chat_template(ask(picture(0), "what is this"), add_generation_prompt=True),
    ]
    for other in spellings[1:]:
        assert other.keys() == spellings[0].keys()
        assert all(torch.equal(other[name], spellings[0][name]) for name in other)


def test_pictures_of_every_kind_become_the_same_pixels_as_their_files(processor: CasaProcessor):
    for mode in ("RGB", "RGBA", "L", "P", "LA", "CMYK"):
        image = PILImage.fromarray(picture(0)).convert(mode)
        file = encode(image, "TIFF" if mode == "CMYK" else "PNG")
        one, other = (processor("what", images=picture)["pixel_values"] for picture in (image, file))
        assert torch.equal(one, other), mode


def test_without_pictures_the_picture_inputs_are_empty(processor: CasaProcessor):
    batch = processor("what")
    assert list(batch.keys()) == processor.model_input_names
    assert batch["pixel_values"].shape == (0, 3 * 8 * 8)
    assert batch["image_grid_thw"].shape == (0, 3)
    assert batch["image_counts"].shape == batch["input_ids"].shape
    assert not batch["image_counts"].any()


def test_an_answered_conversation_needs_no_prompt(processor: CasaProcessor):
    messages = [
        {"role": "system", "content": "a"},
        *ask("what is this"),
        {"role": "assistant", "content": "a circle"},
    ]
    answered = processor(messages, add_generation_prompt=False)["input_ids"][0]
    assert torch.equal(processor.apply_chat_template(messages)["input_ids"][0], answered)
    text = processor.tokenizer.decode(answered)
    assert text == "<|system|> a<|end|><|user|> what is this<|end|><|assistant|> a circle<|end|>"


def test_strings_of_a_batch_take_a_list_of_pictures_each(processor: CasaProcessor):
    batch = processor(["what", "this", "that"], images=[[picture(0)], [], [picture(1), picture(2)]])
    assert [[count for count in row if count] for row in batch["image_counts"].tolist()] == [[1], [], [2]]


def test_qwens_settings_follow_from_the_models_configuration(qwen: CasaProcessor):
    parts = [Image(data=png(0, 224, 224)), Text(role="user", text="this")]
    frames = [Image(timestamp=float(second)) for second in range(2)]
    sample = Sample(source="s", sample_id="1", parts=(*parts, *frames, Text(role="user", text="that")))
    batch = qwen(sample, images=[picture(1, 224, 224), picture(2, 224, 224)])
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8], [1, 4, 4], [1, 4, 4]]
    assert batch["pixel_values"].shape == (64 + 16 + 16, 3 * 2 * 14 * 14)
    first, second = batch["pixel_values"].view(-1, 3, 2, 196).unbind(dim=2)
    assert torch.equal(first, second), "a picture fills both frames of a patch"
    assert qwen.image_placement == "window_start"


def test_insertion_leaves_images_in_place():
    tokenizer = build_tokenizer([WORDS], 300)
    config = CasaConfig(fusion={"kind": "insertion"})
    processor = CasaProcessor.for_model(tokenizer, config, template="casa-1", max_side=48)
    assert (processor.image_placement, processor.max_side, processor.patch_size) == ("in_place", 48, 8)


IMAGE_AND_WORDS = ask(..., "what")
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "too few pictures": (IMAGE_AND_WORDS, None, "`images` has 0 pictures; the text has 1 image parts"),
    "too many pictures": (IMAGE_AND_WORDS, [picture(0)] * 2, "`images` has 2 pictures; the text has 1"),
    "pictures in the wrong row": (
        [IMAGE_AND_WORDS, ask("a")],
        [[], [picture(0)]],
        r"images\[0\] has 0 pictures; conversation 0 has 1",
    ),
    "a list of pictures too many": ([IMAGE_AND_WORDS], [[picture(0)], []], "`images` has 2 lists for 1"),
    "strings with a flat list": (["a", "b"], [picture(0), picture(1)], "Which of the 2 strings"),
    "strings among messages": (["a", ask("b")], None, "`text` mixes strings"),
    "no conversation": ([], None, r"`text` is \[\]"),
    "a role that is none": ([{"role": "robot", "content": "a"}], None, r"messages\[0\] has the role 'robot'"),
    "a part that is none": (
        [{"role": "user", "content": [{"type": "audio"}]}],
        None,
        r"messages\[0\].content\[0\] is \{'type': 'audio'\}",
    ),
    "a picture in an answer": (
        [{"role": "assistant", "content": [{"type": "image"}]}],
        None,
        "is an image in the assistant's turn",
    ),
    "floating-point pixels": (
        IMAGE_AND_WORDS,
        [np.zeros((16, 16, 3), np.float32)],
        r"images\[0\] is an array of float32 of shape \(16, 16, 3\)",
    ),
    "channels first": (
        IMAGE_AND_WORDS,
        np.zeros((3, 16, 16), np.uint8),
        r"images\[0\] is an array of uint8 of shape \(3, 16, 16\)",
    ),
    "pixels that are not RGB inside a message": (
        ask("what", np.zeros((16, 16), np.uint8)),
        None,
        r"Image 0 of the conversation is an array of uint8 of shape \(16, 16\)",
    ),
    "an address": (IMAGE_AND_WORDS, ["http://127.0.0.1:9/y.png"], r"images\[0\]: http://127.0.0.1:9/y.png"),
    "a number": (IMAGE_AND_WORDS, [3], r"images\[0\] is of type int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(processor: CasaProcessor, name: str):
    text, images, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        processor(text, images=images)


def test_other_refusals_say_what_to_do(processor: CasaProcessor):
    with pytest.raises(MediaError, match="not an image"):
        processor("what", images=b"nothing of the kind")
    with pytest.raises(ConfigError, match="`return_tensors = 'np'`"):
        processor("what", return_tensors="np")
    with pytest.raises(ConfigError, match="not a text"):
        processor.apply_chat_template(ask("what"), tokenize=False)
    with pytest.raises(DataError, match="3 to 5 tokens"):
        processor(["what", "what is this"], padding=False, add_generation_prompt=False)
    assert processor(["what", "this"], padding=False)["input_ids"].shape[0] == 2


def test_rows_that_need_padding_need_a_padding_token():
    tokenizer = build_tokenizer([WORDS] * 3, 400)
    tokenizer.pad_token = None
    processor = CasaProcessor(tokenizer)
    assert processor("what")["input_ids"].shape[0] == 1
    with pytest.raises(ConfigError, match="no padding token"):
        processor(["what", "what is this"])


@pytest.mark.parametrize("load", [CasaProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_every_setting_survives_a_checkpoint(load: Any, tmp_path):
    settings = {
        "template": "qwen-1",
        "image_placement": "in_place",
        "patch_size": 14,
        "merge_size": 1,
        "temporal_patch_size": 2,
        "max_side": 112,
        "max_frame_side": 56,
        "min_side": 28,
        "max_video_tokens": 640,
        "min_frame_side": 42,
        "video_over_budget": "fewer",
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "resample": "lanczos",
    }
    processor = CasaProcessor(build_tokenizer([WORDS] * 3, 400, "qwen-1"), **settings)
    assert settings.keys() == {*CasaProcessor.__init__.__annotations__} - {"tokenizer", "kwargs", "return"}
    processor.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, CasaProcessor)
    assert {name: getattr(again, name) for name in settings} == settings
    assert again.template_hash() == processor.template_hash()
    one, other = (p(ask(..., "what"), images=picture(0)) for p in (processor, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_maximum_changed_after_loading_counts(processor: CasaProcessor):
    other = CasaProcessor(processor.tokenizer, max_side=64)
    other.max_side = 128
    assert other.image_size(500, 500).tokens == 64
