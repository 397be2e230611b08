"""``casa inspect`` as a user meets it: its drawings, its page, what it prints."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from casa_core.analysis.attention_stats import AttentionTable, KindMean, Kinds
from casa_core.analysis.masking import MASKINGS
from casa_core.media.decode import encode_png
from pipelines.cards.attention import heat, kinds_chart
from pipelines.cli.app import app
from tests.support.core.engine import picture, png
from tests.support.core.inspect_checkpoint import write
from tests.support.data.media import counting_video


@pytest.fixture(scope="module")
def casa_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("casa") / "model", kind="casa")


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


def test_a_model_without_text_keys_shows_why_nothing_is_masked_and_shows_the_rest(
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
        ([tmp_path / "nowhere"], "There is no such folder"),
        ([tmp_path], "It has no config.json"),
        (
            [casa_checkpoint, "--image", pictures[0], "--question", "a", "--question", "b"],
            "`--image` was given 1 times, `--question` 2 times",
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
    wide.write_bytes(encode_png(picture(3, 20, 90)))
    page = tmp_path / "p.html"
    inspected(casa_checkpoint, "--image", wide, "--page", page, "--max-tokens", 2)
    assert "aspect-ratio: 90 / 20" in page.read_text()
