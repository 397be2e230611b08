"""Records as people write them, from the recipe through the real clean stage to the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from casa_core.errors import DataError
from pipelines.cli.show.format import headline
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.store.quarantine import read_quarantine
from pipelines.data.store.readers import CleanReader
from pipelines.recipe import build_stages, load_recipe
from tests.support.data.corpus import PICTURE, write_jsonl
from tests.support.data.layouts import write_tar

PAIRS = [{"user": "what is it?", "assistant": "a ramp"}]
BOTH = [{"user": "Before: <image> After: <image> What changed?", "assistant": "nothing"}]


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """A small Ray of this module's own."""
    options: dict[str, Any] = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=2, object_store_memory=80 * 2**20, **options)
    yield
    ray.shutdown()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "0.png").write_bytes(PICTURE)
    records = [
        {"image": ["0.png", f"{folder}/0.png"], "texts": BOTH},
        {"image": "0.png", "texts": PAIRS},
        {"texts": PAIRS},
        {"image": None, "texts": PAIRS},
        {"img": "0.png", "texts": PAIRS},
    ]
    write_jsonl(folder / "a.jsonl", records, seeks=False)
    write_tar(folder / "b.tar", [("0.heic", b"\0\0\0\x18ftypheic"), ("0.txt", b"a ramp")])
    return folder


def run(corpus: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """The clean stage as a recipe plans it."""
    source = json.dumps({"reader": "image_text", "path": str(corpus), **settings})
    recipe = load_recipe(
        "quickstart",
        [f"data.sources={{own: {source}}}", "data.max_failures=0.4", "train.image_video_ratio=[1, 0]"],
    )
    stage = next(stage for stage in build_stages(recipe) if stage.name == "clean-own")
    output.mkdir()
    values = {**stage.settings, **stage.location}
    context = StageContext(name="clean-own", settings=values, placement=stage.placement, output=output)
    return clean.run_stage(context)


def test_a_declared_source_may_have_texts_alone_and_headline_and_card_count_them(corpus, tmp_path):
    summary = run(corpus, tmp_path / "out", pictures="optional")
    assert "4 train · " in headline(summary)
    assert "2 samples without pictures · 2 quarantined (missing_image 1, unsupported_format 1)" in headline(
        summary
    )
    card = json.loads((tmp_path / "out" / "card.json").read_text())["splits"]["train"]
    assert (card["records"], card["rows"], card["images"], card["without_pictures"]) == (6, 4, 3, 2)
    first = CleanReader(tmp_path / "out", "train")[0]
    kinds = [part["text"] if part["kind"] == "text" else part["media"] for part in first["parts"]]
    assert kinds == ["Before:", 0, "After:", 1, "What changed?", "nothing"]


def test_otherwise_they_stop_the_run_and_the_message_names_the_reason_with_an_example(corpus, tmp_path):
    with pytest.raises(DataError, match="4 of 6") as caught:
        run(corpus, tmp_path / "out")
    assert "3 x missing_image, 1 x unsupported_format" in caught.value.why
    assert "For example, missing_image: a.jsonl row 2: the record has no picture" in caught.value.why
    found = {
        (entry.file, entry.row): entry.detail
        for entry in read_quarantine(tmp_path / "out/quarantine.parquet")
    }
    assert "not from img" in found["a.jsonl", 4]
    assert found["b.tar", 0].startswith("0.heic: ")
