"""Corpora as they go wrong in practice: each is refused in three lines: what, why and what to do."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from casa_core.errors import ConfigError
from pipelines.cli.app import app
from pipelines.data.clean.run import plan
from pipelines.data.read import open_reader
from tests.support.paths import ROOT

RATES = ["clean_megapixels=50", "video_megapixels=20", "encode_tokens=200000", "pack_samples=20000"]
GIVEN = [part for rate in RATES for part in ("--rate", rate)]

Case = tuple[Callable[[Path], object], tuple[str, ...]]


def table(path: Path) -> None:
    pq.write_table(pa.table({"foo": [1, 2], "bar": ["a", "b"]}), path)


IMAGE_TEXT: dict[str, Case] = {
    "an empty folder": (lambda root: None, ("no training records", "No file of its layout (.jsonl,")),
    "an empty file": (lambda root: (root / "a.jsonl").touch(), ("no training records", "a.jsonl is empty")),
    "a broken JSON": (
        lambda root: (root / "a.json").write_text('{"image": "a.png", '),
        ("not read: 1 .json", "is read that is one array of records"),
    ),
    "a line of broken JSON": (
        lambda root: (root / "a.jsonl").write_text("<html>404</html>\n"),
        ("None of the 1 records sampled", "bad_json 1", "a.jsonl, record 0", "Correct the records"),
    ),
    "bare strings": (
        lambda root: (root / "a.jsonl").write_text('"hello"\n"world"\n'),
        ("None of the 2 records sampled", "the record is no object: str"),
    ),
    "unknown columns": (
        lambda root: table(root / "0.parquet"),
        ("missing_text 2", "the file has no column messages,", "it has foo, bar"),
    ),
    "a table": (
        lambda root: (root / "a.csv").write_text("image,caption\nC:\\data\\a.png,hi\n"),
        ("not read: 1 .csv", "Write tables as JSONL or parquet"),
    ),
    "paths of Windows": (
        lambda root: (root / "a.jsonl").write_text('{"image": "C:\\\\data\\\\a.png", "caption": "x"}\n'),
        ("bad_path 1", "leads out of the corpus", "name files relative to it"),
    ),
    "a link to nowhere": (
        lambda root: (root / "a.jsonl").symlink_to("gone.jsonl"),
        ("a.jsonl of", "leads nowhere", "Fetch what they should lead to"),
    ),
    "random bytes": (
        lambda root: (root / "a.parquet").write_bytes(os.urandom(5000)),
        ("unreadable_file 1", "its footer cannot be read"),
    ),
    "a zip that is none": (
        lambda root: (root / "a.zip").write_bytes(b"not a zip"),
        ("The archive a.zip cannot be read", "Fetch it again"),
    ),
    "a packed WebDataset": (
        lambda root: (root / "a.tar.gz").write_bytes(gzip.compress(b"x" * 1024)),
        ("not read: 1 .tar.gz", "Unpack .tar.gz to .tar: `gunzip`"),
    ),
    "a packed array": (
        lambda root: (root / "a.json.gz").write_bytes(gzip.compress(b"[]")),
        ("not read: 1 .json.gz", "Unpack what is packed"),
    ),
    "only held-out files": (
        lambda root: (root / "XTest.jsonl").write_text('{"caption": "x"}\n'),
        ("1 held out by their names", "Name files to train on in `splits`"),
    ),
}


def planned(folder: Path, root: object, reader: str = "image_text", columns: str = "1000") -> str:
    """What ``casa data plan`` says to refuse a corpus."""
    text = (ROOT / "pipelines" / "recipes" / "quickstart.yaml").read_text()
    start, end = text.index("    vqa:"), text.index("  max_failures")
    ratio = "[0, 1]" if reader == "llava_video" else "[1, 0]"
    recipe = folder / "mine.yaml"
    source = f"    mine: {{reader: {reader}, path: '{root}'}}\n"
    recipe.write_text((text[:start] + source + text[end:]).replace("[3, 1]", ratio))
    arguments = ["data", "plan", str(recipe), *GIVEN]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": columns})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_a_corpus_that_cannot_be_used_is_refused_in_three_lines(tmp_path, name):
    make, words = IMAGE_TEXT[name]
    root = tmp_path / "corpus"
    root.mkdir()
    make(root)
    said = planned(tmp_path, root)
    for word in words:
        assert word in said
    assert len(said.strip().splitlines()) == 3
    assert "try: " in said


def test_a_file_in_the_place_of_a_folder_and_a_folder_that_is_not_there_are_named(tmp_path):
    (tmp_path / "a.jsonl").touch()
    assert "Name the folder that holds the file" in planned(tmp_path, tmp_path / "a.jsonl")
    assert "Check the source's path" in planned(tmp_path, tmp_path / "gone")


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        ("finevision", "the file has no column images, texts"),
        ("llava_onevision", "the file has no column image, conversations"),
        ("llava_video", "No file of its layout (.json) was found there: not read: 1 .parquet"),
    ],
)
def test_another_layouts_files_are_refused_by_what_they_lack(tmp_path, reader, words):
    root = tmp_path / "corpus" / "subset"
    root.mkdir(parents=True)
    table(root / "0.parquet")
    assert words in planned(tmp_path, root.parent, reader)


def test_cleaning_refuses_an_empty_source_in_the_same_words(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ConfigError, match=r"not read: 1 \.csv"):
        plan(open_reader("image_text", str(tmp_path), "mine", {}))
