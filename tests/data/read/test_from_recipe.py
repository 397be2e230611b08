"""What a recipe says of its sources, and what of it reaches the readers."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from casa_core.errors import ConfigError
from pipelines.data.read import READERS, open_reader
from pipelines.recipe import build_stages, load_recipe
from pipelines.recipe.data import READER_OPTIONS
from tests.support.data.hub import running_hub
from tests.support.data.layouts import write_every_layout

QUICKSTART = "data.sources.vqa"
B1 = """OmniDocBench, allenai-pixmo-docs, amc-aime, aops-forum, arxiv-figs, diagram, GQA,
infographic-azuregt4v, invoices, latex-ocr, llava-cot-100k, llava-wild, llrv-gpt4v, olympiads,
orokon-chart-captioning, rootsautomation, sherlock, SVIT, TinyChart, UReader-chart, UReader-ocr,
UReader-tr, viquae, vision-orientated, visual-chat, WIT"""
"""The subsets that the paper keeps of LLaVA-OneVision-1.5 (appendix B.1), as it spells them."""


@pytest.mark.parametrize("name", READERS)
def test_every_setting_of_a_reader_can_be_given_in_a_recipe_and_no_other(name: str):
    accepted = set(inspect.signature(READERS[name]).parameters) - {"files", "source"}
    assert READER_OPTIONS[name] == accepted


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["subsets=[]"], "subsets"),
        (["kinds=[caption]"], "kinds is no setting of reader finevision, which reads still pictures"),
        (["caption_prompt=x"], "caption_prompt is no setting of reader finevision"),
        (["max_seconds=0"], "max_seconds"),
        (["shrink_above=0"], "shrink_above"),
    ],
)
def test_a_setting_that_is_not_the_readers_is_refused(overrides: list[str], says: str):
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_recipe("quickstart", [f"{QUICKSTART}.{override}" for override in overrides])


def clean_stage(overrides: list[str], source: str = "vqa"):
    stages = build_stages(load_recipe("quickstart", overrides))
    return next(stage for stage in stages if stage.name == f"clean-{source}")


def test_only_settings_that_are_given_count_towards_the_clean_stage():
    plain = clean_stage([])
    assert not {"subsets", "exclude_subsets", "shrink_above", "max_pixels"} & plain.settings.keys()
    given = clean_stage([f"{QUICKSTART}.subsets=[a, b]", f"{QUICKSTART}.shrink_above=896"])
    assert given.settings == {**plain.settings, "subsets": ["a", "b"], "shrink_above": 896}


def test_a_corpus_on_the_hub_is_identified_by_what_it_holds_and_not_by_where(tmp_path: Path, monkeypatch):
    write_every_layout(tmp_path)
    with running_hub(tmp_path) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        first, second = (
            clean_stage([f"{QUICKSTART}={{reader: finevision, path: '{path}'}}"])
            for path in (f"hf://datasets/org/pictures{revision}/finevision" for revision in ("", "@v1"))
        )
    assert first.settings == second.settings
    assert first.settings["raw"]["files"] == 2
    assert first.location != second.location


def test_the_papers_recipe_keeps_the_subsets_of_b1_and_oversamples_docmatix():
    recipe = load_recipe("paper_data")
    kept = recipe.data.sources["llava_onevision"].subsets
    assert kept is not None
    text = Path(inspect.getfile(build_stages)).parents[1] / "recipes" / "paper_data.yaml"
    lines = {
        line.split("#")[0].strip(" -\n"): line.partition("#")[2].strip()
        for line in text.open()
        if "- " in line
    }
    plain = lambda name: re.sub("[-_]", "", name.lower())  # noqa: E731
    named = {plain(lines[name] if lines[name] and "parts" not in lines[name] else name) for name in kept}
    assert named == {plain(name) for name in re.split(r",\s+", B1)}
    assert recipe.pack.mixture.passes == {"docmatix": 6}
    assert (recipe.pack.text_tokens, recipe.pack.image_tokens) == (2048, 20480)
    assert (recipe.pack.max_side, recipe.pack.max_frame_side) == (896, 448)
    assert recipe.train.image_video_ratio == [3, 1]
    for name, source in recipe.data.sources.items():
        assert open_reader(source.reader, str(source.path), name, source.reader_options()).source == name
