"""``casa inspect`` and what stands behind it: conversations examined, drawings, the page, the command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HeliumConfig
from typer.testing import CliRunner

from casa_core.analysis.examine import NEXT_FRAME, SILENT, Examiner
from casa_core.analysis.kinds import AttentionTable, KindMean, Kinds
from casa_core.analysis.masking import MASKINGS, masked_attention
from casa_core.analysis.reading import delimiter_ids
from casa_core.checkpoint import save_checkpoint
from casa_core.config import CasaConfig
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration, CasaOutput
from casa_core.processing import CasaProcessor
from casa_core.tokenizer import build_tokenizer
from casa_core.types import Image, Sample, Text
from pipelines.cli.app import app
from pipelines.report.attention import heat, kinds_chart
from tests.support.core_engine import picture, png, recorded
from tests.support.data_media import counting_video

TEXTS = ["what colour is shape 3 red green blue", "describe it live a red circle moves on"]
QUESTION = "what colour is it?"


def write(folder: Path, template: str = "casa-1", blind: bool = False, **fusion: Any) -> Path:
    """A small checkpoint with random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXTS, 300, template)
    text_config = HeliumConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    config = CasaConfig(text_config=text_config, fusion=FusionConfig(**fusion), images_withheld=blind)
    model = CasaForConditionalGeneration(config)
    save_checkpoint(folder, model, CasaProcessor(tokenizer, template=template), provenance={"steps": 7})
    return folder


@pytest.fixture(scope="module")
def casa_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("casa") / "model", kind="casa")


@pytest.fixture(scope="module")
def engine(casa_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(casa_checkpoint, device="cpu")


# ---- Conversations ----


def test_an_examined_answer_is_the_engines_own_masked_and_not(engine: Engine):
    one = Examiner(engine, seed=4, max_new_tokens=6).question(png(1), QUESTION, "noise")
    parts = (Image(data=png(1)), Text(role="user", text=QUESTION))
    request = GenerationRequest(
        sample=Sample(source="s", sample_id="s", parts=parts), sampling=SamplingParams(max_new_tokens=6)
    )
    result = engine.generate([request])[0]
    chosen = [said.place for said in one.said]
    assert [one.sequence.ids[place] for place in chosen][: len(result.token_ids)] == list(result.token_ids)
    assert chosen[0] == result.prompt_tokens
    expected = [result.text]
    for what in MASKINGS:
        with masked_attention(engine.model, what, seed=4):
            expected.append(engine.generate([request])[0].text)
    assert [answer.text for answer in one.masked] == expected
    assert [answer.what for answer in one.masked] == [None, *MASKINGS]
    assert one.answer == one.masked[0].text


def test_greedy_words_are_likeliest_when_nothing_is_masked(engine: Engine):
    """The untrained model's attention to itself matters to it, so masking it moves the likelihood."""
    one = Examiner(engine, max_new_tokens=6).question(png(1), QUESTION, "noise")
    free, itself, *_ = one.masked
    assert free.log_likelihood > itself.log_likelihood
    assert free.log_likelihood <= 0


def test_each_chosen_token_has_a_map_of_the_pictures_grid(engine: Engine):
    one = Examiner(engine, max_new_tokens=4).question(png(1), QUESTION, "noise")
    size = engine.processor.image_size(48, 64)
    rows, columns = (n // 2 for n in engine.processor.grid(size))
    assert one.maps is not None
    assert [images[0].shape for images in one.maps.tokens] == [(rows, columns)] * len(one.said)
    assert all(0 < images[0].sum() < 1 for images in one.maps.tokens)


@contextmanager
def saying_one_word_a_frame(engine: Engine, word: int) -> Iterator[None]:
    """After an image the model says the word, after the word it waits; but after every third frame's image it
    waits at once."""
    frames = 0

    def dictate(_module: object, arguments: tuple[Any, ...], output: CasaOutput) -> CasaOutput:
        nonlocal frames
        assert output.logits is not None
        if output.logits.dim() == 3:  # choosing, not counting likelihoods
            last = int(arguments[0][0, -1])
            frames += last == engine.processor.image_id
            speaks = last == engine.processor.image_id and frames % 3
            token = word if speaks else engine.processor.frame_end_id
            output.logits = torch.zeros_like(output.logits)
            output.logits[..., -1, token] = 1e4
        return output

    with engine.model.register_forward_hook(dictate):
        yield


def frames_of(count: int) -> list[bytes]:
    return [png(seed) for seed in range(count)]


@pytest.mark.parametrize("template", ["casa-1", "qwen-1"])
def test_a_clip_is_examined_as_the_stream_that_it_was(template: str, tmp_path: Path):
    engine = Engine.from_pretrained(write(tmp_path, template, kind="casa"), device="cpu")
    word = engine.processor.tokenizer.encode(" red")[0]
    with saying_one_word_a_frame(engine, word), recorded(engine.model) as tape:
        session = engine.open_session("describe it live", max_tokens_per_frame=5)
        for number, frame in enumerate(frames_of(4)):
            session.push_frame(frame, number)
    with saying_one_word_a_frame(engine, word):
        one = Examiner(engine, max_new_tokens=5).clip(frames_of(4), "describe it live", "clip")
    # The last frame's stop token waits for a frame that never comes.
    assert list(one.sequence.ids[:-1]) == tape.ids
    assert [said.picture for said in one.said] == [0, 0, 1, 1, 2, 3, 3]
    spoken = engine.processor.tokenizer.decode([word])
    assert [said.text for said in one.said] == [
        spoken,
        NEXT_FRAME,
        spoken,
        NEXT_FRAME,
        SILENT,
        spoken,
        NEXT_FRAME,
    ]
    assert one.answer == " ".join([spoken.strip()] * 3)
    assert one.maps is not None
    assert [list(images) for images in one.maps.tokens] == [[said.picture] for said in one.said]


def test_words_cut_off_at_the_limit_have_no_stop_token_of_their_own(engine: Engine):
    one = Examiner(engine, max_new_tokens=2).clip(frames_of(2), "", "clip")
    ends = [said.text in (NEXT_FRAME, SILENT) for said in one.said]
    assert not any(ends)  # this untrained model never stops
    assert [said.picture for said in one.said] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "watched", "masked"),
    [
        ({"kind": "cross_attention"}, None, "attend to image tokens alone"),
        ({"kind": "insertion"}, "stand in the text", "stand in the text"),
        ({"kind": "casa", "blind": True}, "every image left out", "every image left out"),
        ({"kind": "casa", "placement": "replace", "layers": "all"}, None, None),
    ],
)
def test_what_a_model_cannot_show_has_a_reason_and_the_rest_is_shown(
    settings: dict[str, Any], watched: str | None, masked: str | None, tmp_path: Path
):
    examiner = Examiner(Engine.from_pretrained(write(tmp_path, **settings), device="cpu"), max_new_tokens=3)
    one = examiner.question(png(1), QUESTION, "noise")
    for refused, expected in ((examiner.unwatched, watched), (examiner.unmasked, masked)):
        assert (refused is None) == (expected is None)
        assert expected is None or expected in refused.why  # type: ignore[union-attr]
    assert (one.maps is None) == (watched is not None)
    assert bool(one.masked) == (masked is None)
    assert one.said


@pytest.mark.parametrize(
    ("template", "tokens"),
    [("casa-1", ["<|image|>"]), ("qwen-1", ["<|vision_start|>", "<|vision_end|>"])],
)
def test_delimiters_are_the_templates_tokens_around_an_image(template: str, tokens: Sequence[str]):
    tokenizer = build_tokenizer(TEXTS, 300, template)
    found = delimiter_ids(CasaProcessor(tokenizer, template=template))
    assert found == set(tokenizer.convert_tokens_to_ids(list(tokens)))


# ---- Drawings ----


def some_table(weights: dict[str, float | None], groups: Sequence[float]) -> AttentionTable:
    means = {name: KindMean(0.25, weight) for name, weight in weights.items()}
    kinds = Kinds(**means, image_groups=tuple(KindMean(0.1, weight) for weight in groups))
    return AttentionTable(
        whole=kinds, layers={0: kinds}, even=0.01, group=16, queries=9, images=1, sequences=1
    )


def test_a_weight_ten_times_another_stands_one_decade_higher():
    table = some_table({"delimiter": 0.002, "image": 0.02, "text": 0.2, "itself": 0.02}, [0.02, 0.002])
    drawn = kinds_chart(table)
    heights = {
        style: float(y)
        for y, style in re.findall(r'<circle cx="[^"]+" cy="([^"]+)" r="6" class="fill-(\w+)"', drawn)
    }
    decade = heights["delimiter"] - heights["itself"]
    assert heights["itself"] - heights["text"] == pytest.approx(decade, abs=0.02)
    groups = [float(y) for y in re.findall(r'cy="([^"]+)" r="3.2"', drawn)]
    assert groups[1] - groups[0] == pytest.approx(decade, abs=0.02)
    marks = [float(mark) for mark in re.findall(r'class="tick">([^<]+)<', drawn)]
    assert min(marks) <= 0.002
    assert max(marks) >= 0.2


def test_kinds_that_nobody_saw_are_not_drawn():
    drawn = kinds_chart(
        some_table({"delimiter": None, "image": 0.5, "text": None, "itself": None}, [0.5, 0.4])
    )
    assert "fill-image" in drawn
    assert "fill-itself" not in drawn


@pytest.mark.parametrize("weight", [1e-9, 0.0099, 0.01, 0.5, 1.0])
def test_any_weight_lies_inside_the_chart(weight: float):
    drawn = kinds_chart(some_table({"delimiter": weight, "image": 0.01, "text": 0.01, "itself": 1.0}, [0.01]))
    heights = [float(y) for y in re.findall(r'cy="([^"]+)"', drawn)]
    assert all(24 <= y <= 324 for y in heights)


def test_heat_grows_with_the_weight_and_starts_from_nothing():
    import base64
    import io

    from PIL import Image as Pillow

    drawn = heat(np.array([[0.0, 0.1, 0.2], [0.3, 0.35, 0.4]]), alt="a map")
    data = re.search(r'base64,([^"]+)"', drawn)
    assert data is not None
    pixels = np.array(Pillow.open(io.BytesIO(base64.b64decode(data[1]))))
    assert pixels.shape == (2, 3, 4)
    opacity, warmth = pixels[..., 3].flatten().astype(int), pixels[..., :2].sum(axis=-1).flatten()
    assert opacity[0] == 0
    assert (np.diff(opacity) > 0).all()
    assert (np.diff(warmth) > 0).all()


# ---- The command ----


class Page(HTMLParser):
    """What a page holds; elements must nest, and nothing may come from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []
        self.words = ""
        page = path.read_text(encoding="utf-8")
        self.feed(page)
        self.close()
        assert not self.open
        assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#)\w+[:/]""", page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        self.classes += (dict(attrs).get("class") or "").split()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data


def inspected(*arguments: object, code: int = 0) -> str:
    """Run ``casa inspect``; returns what it printed."""
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one <b>.png", "two.png")]
    for seed, path in enumerate(paths):
        path.write_bytes(png(seed))
    return paths


def test_a_checkpoint_is_described_asked_watched_and_masked(casa_checkpoint: Path, tmp_path: Path):
    """With nothing but the checkpoint: a drawn picture and a question about it."""
    page = tmp_path / "pages" / "inspect.html"
    said = inspected(casa_checkpoint, "--page", page, "--max-tokens", 4)
    for words in (
        "casa, parallel",
        "all 2",
        "casa-1",
        "steps 7",
        "a drawn picture, 16 image tokens",
        "what color is the shape?",
        "a random text token",
        "the token itself",
        "image delimiters",
        f"page: {page}",
    ):
        assert words in said, words
    drawn = Page(page)
    assert drawn.classes.count("look") == 4 + 2  # four words, two layers
    assert {"fill-itself", "fill-text", "fill-image", "fill-delimiter"} <= set(drawn.classes)
    assert "Where it looked for each word" in drawn.words


def test_a_model_without_text_keys_tells_why_nothing_is_masked_and_shows_the_rest(
    tiny_checkpoint: Path, tmp_path: Path
):
    page = tmp_path / "inspect.html"
    said = inspected(tiny_checkpoint, "--page", page, "--max-tokens", 3)
    assert "not possible" in said
    assert "attend to image tokens alone" in said
    assert "a random token" not in said
    drawn = Page(page)
    assert drawn.classes.count("look") == 3 + 2
    assert "attend to image tokens alone" in drawn.words
    assert "fill-itself" not in drawn.classes


def test_pictures_are_asked_their_own_questions_and_names_cannot_become_markup(
    casa_checkpoint: Path, pictures: list[Path], tmp_path: Path
):
    asked = ["--image", pictures[0], "--question", "red?", "--image", pictures[1], "--question", "blue?"]
    page = tmp_path / "p.html"
    found = json.loads(inspected(casa_checkpoint, *asked, "--page", page, "--max-tokens", 3, "--json"))
    assert [(one["name"], one["question"]) for one in found["conversations"]] == [
        ("one <b>.png", "red?"),
        ("two.png", "blue?"),
    ]
    assert "one <b>.png" in Page(page).words
    assert [answer["what"] for answer in found["conversations"][0]["masked"]] == [None, *MASKINGS]
    shares = [found["attention"]["whole"][kind]["share"] for kind in ("delimiter", "image", "text", "itself")]
    assert math.isclose(sum(shares), 1, abs_tol=1e-6)
    assert found["attention"]["images"] == 2
    assert found["not_possible"] == {}


def test_one_question_may_be_asked_about_every_picture(
    casa_checkpoint: Path, pictures: list[Path], tmp_path: Path
):
    asked = ["--image", pictures[0], "--image", pictures[1], "--question", "red?", "--group", 4]
    found = json.loads(
        inspected(casa_checkpoint, *asked, "--page", tmp_path / "p.html", "--max-tokens", 3, "--json")
    )
    assert [one["question"] for one in found["conversations"]] == ["red?", "red?"]
    assert found["attention"]["group"] == 4


def test_a_clip_is_watched_live_and_alone(casa_checkpoint: Path, tmp_path: Path):
    clip, page = tmp_path / "grey.mp4", tmp_path / "p.html"
    counting_video(clip)  # four seconds
    asked = ["--clip", clip, "--query", "describe it live", "--frames", 3, "--max-tokens", 2, "--page", page]
    said = inspected(casa_checkpoint, *asked)
    assert "grey.mp4, 3 frames" in said
    assert "a drawn picture" not in said
    drawn = Page(page)
    assert drawn.classes.count("frames") == 1
    assert drawn.classes.count("look") == 6


def test_the_artifact_of_a_train_stage_will_do(tmp_path: Path):
    write(tmp_path / "0123456789abcdef" / "model", kind="casa")
    page = tmp_path / "p.html"
    said = inspected(tmp_path / "0123456789abcdef", "--page", page, "--max-tokens", 2)
    assert "0123456789abcdef/model" in said
    assert "model 0123456789ab" in Page(page).words


def test_mistakes_end_with_2_and_a_way_out(casa_checkpoint: Path, pictures: list[Path], tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    text = tmp_path / "clip.txt"
    text.write_text("not a clip")
    for arguments, says in [
        ([tmp_path / "nowhere"], "there is no such folder"),
        ([tmp_path], "it has no config.json"),
        (
            [casa_checkpoint, "--image", pictures[0], "--question", "a", "--question", "b"],
            "--image was given 1 times, --question 2 times",
        ),
        ([casa_checkpoint, "--image", broken], "not an image"),
        ([casa_checkpoint, "--clip", text], "clip.txt"),
        ([casa_checkpoint, "--max-tokens", 9999], "context of 256 tokens"),
    ]:
        said = inspected(*arguments, "--page", tmp_path / "p.html", code=2)
        assert says in said
        assert "Traceback" not in said
    assert not (tmp_path / "p.html").exists()
    assert "does not exist" in inspected(casa_checkpoint, "--image", tmp_path / "no.png", code=2)


def test_pictures_of_any_shape_fill_their_cards(casa_checkpoint: Path, tmp_path: Path):
    wide = tmp_path / "wide.png"
    from casa_core.media import encode_png

    wide.write_bytes(encode_png(picture(3, 20, 90)))
    page = tmp_path / "p.html"
    inspected(casa_checkpoint, "--image", wide, "--page", page, "--max-tokens", 2)
    assert "aspect-ratio: 90 / 20" in page.read_text()
