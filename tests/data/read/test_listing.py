"""Which files of a corpus are read, in which split, and what counts towards its address: one listing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from casa_core.errors import ConfigError, DataError
from pipelines.dag.raw_inputs import identify
from pipelines.data.read import open_reader
from pipelines.data.read.source.splits import Inventory, split_of_name, suffix_of
from tests.support.data.corpus import finevision_row, write_finevision, write_jsonl
from tests.support.data.layouts import video_item, write_array

RECORD = {"caption": "a ramp"}


def lines(path: Path, count: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_jsonl(path, [RECORD] * count, seeks=False)


def inventory(folder: Path, reader: str = "image_text", **options: object) -> Inventory:
    return open_reader(reader, str(folder), "corpus", options).inventory()


# Splits


HELD_OUT = """validation-0.parquet
val.jsonl dev.jsonl valid.jsonl eval_2.jsonl test/part-0.parquet val2017.tar
VAL/a.jsonl my-test.jsonl test1.jsonl a/dev/b/0.jsonl testdev_balanced.jsonl a.test.jsonl train-test.jsonl
testA.jsonl valSet/0.tar TestStd.jsonl
testset.jsonl devset.json VALSET.tar testmini-0.parquet testdata/0.tar devtest.jsonl refcoco_testb.jsonl
minitest.tar held-out/1.jsonl held_out.jsonl hold-out.jsonl HeldOut.tar
XTest.jsonl VQATest.parquet MMEval/0.tar photosVal.jsonl x2test.jsonl test2x.jsonl testv2.jsonl
2023val/a.jsonl mytest.jsonl ourval.tar newtest.jsonl smalldev.jsonl MyTest.jsonl"""
TRAINED_ON = """testimonials.jsonl latest.jsonl contest/0.tar devices.jsonl develop/a.jsonl value.jsonl
evaluated.jsonl 0_30_s_perceptiontest/a_cap.json interval-0.parquet protest.jsonl
VOCdevkit/a.jsonl testament.jsonl device_data.jsonl valetudo.jsonl holdings/outer.jsonl
latest.json LATEST.jsonl latest2.jsonl contest-data.parquet greatest_hits.jsonl Contests/a.jsonl medieval.tar
retrieval.jsonl invalid.jsonl trainval.jsonl photostest.jsonl TextVQA/0.parquet devotional.jsonl"""


@pytest.mark.parametrize("name", HELD_OUT.split())
def test_what_is_called_held_out_at_a_words_border_is_held_out(name):
    assert split_of_name(name) == "test"


@pytest.mark.parametrize("name", TRAINED_ON.split())
def test_a_longer_word_holds_nothing_out(name):
    assert split_of_name(name) == "train"


def test_a_name_that_only_ends_as_a_held_out_one_is_trained_on_in_full_sight(tmp_path):
    for name in (
        "latest.jsonl",
        "photostest.jsonl",
        "0_trainval/a.jsonl",
        "0_trainval/b.jsonl",
        "mytest.jsonl",
    ):
        lines(tmp_path / name)
    found = inventory(tmp_path)
    assert found.splits["test"] == ("mytest.jsonl",)
    assert found.summary() == (
        "trained on in spite of its name, `photostest`: 1 file (held out if `splits` says so); "
        "trained on in spite of its name, `trainval`: 2 files (held out if `splits` says so)"
    )
    decided = inventory(tmp_path, splits={"train": ["0_trainval/*"], "test": ["photostest.jsonl"]})
    assert decided.summary() == ""
    assert decided.to_json()["notes"] == []


def test_validation_and_test_files_are_held_out_and_the_others_are_trained_on(tmp_path):
    for name in ("train-0.parquet", "validation-0.parquet", "test/part-0.parquet"):
        write_finevision(tmp_path / name, [finevision_row()])
    for name in ("val.jsonl", "dev.jsonl", "testimonials.jsonl"):
        lines(tmp_path / name)
    found = inventory(tmp_path)
    assert found.splits["train"] == ("testimonials.jsonl", "train-0.parquet")
    assert found.splits["test"] == ("dev.jsonl", "test/part-0.parquet", "val.jsonl", "validation-0.parquet")


def test_a_recipes_patterns_move_files_whatever_they_are_called(tmp_path):
    for name in ("val/a.jsonl", "val/b.jsonl", "dev.jsonl", "c.jsonl", "d.jsonl"):
        lines(tmp_path / name)
    found = inventory(tmp_path, splits={"train": ["val/*"], "test": ["c.jsonl"], "unused": ["d*.jsonl"]})
    assert found.splits == {"train": ("val/a.jsonl", "val/b.jsonl"), "test": ("c.jsonl",)}
    assert found.excluded == ("d.jsonl", "dev.jsonl")


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"train": ["vall/*"]}, "no file of the corpus"),
        ({"train": ["a*"], "test": ["a.jsonl"]}, "into train"),
    ],
)
def test_patterns_that_match_nothing_or_contradict_each_other_are_refused(tmp_path, splits, says):
    lines(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=says):
        inventory(tmp_path, splits=splits)


FOREIGN = (
    *("", "{", "[]", "null", '"splits"', "{}", "\xff", "[" * 100_000),
    *('{"splits": null}', '{"splits": {"dev": ["a.jsonl"]}}'),
    *('{"splits": {"train": "a.jsonl"}}', '{"splits": {"train": [1]}}'),
)


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_readme_of_another_origin_decides_nothing_and_is_mentioned(tmp_path, text):
    lines(tmp_path / "a.jsonl")
    lines(tmp_path / "val.jsonl")
    (tmp_path / "README.json").write_bytes(text.encode("latin-1"))
    found = inventory(tmp_path)
    assert found.splits == {"train": ("a.jsonl",), "test": ("val.jsonl",)}
    assert "README.json is of another origin" in found.summary()


def test_a_readme_that_lists_what_is_not_there_stops_the_run(tmp_path):
    lines(tmp_path / "a.jsonl")
    (tmp_path / "README.json").write_text(json.dumps({"splits": {"train": ["a.jsonl", "b.jsonl"]}}))
    with pytest.raises(DataError, match=r"lists 'b\.jsonl', which is not there"):
        inventory(tmp_path)


# What is not read


def test_what_no_reader_reads_is_named(tmp_path):
    lines(tmp_path / "A.JSONL")
    for name in ("a.csv", "b.csv", "c.tar.bz2", "d", "0.png", "README.md", "LICENSE", ".hidden.csv"):
        (tmp_path / name).write_bytes(b"x")
    found = inventory(tmp_path)
    assert found.splits["train"] == ("A.JSONL",)
    assert found.summary() == "not read: 2 .csv, 1 .tar.bz2, 1 without suffix"
    assert suffix_of("x.tar.GZ") == ".tar.gz"


def test_published_names_of_video_annotations_are_read_and_other_json_is_named(tmp_path):
    names = ("llava_hound/sharegptvideo_qa_255k_processed.json", "mine/records.json", "mine/a_cap.json")
    for name in names:
        write_array(tmp_path / name, [video_item()])
    (tmp_path / "mine" / "settings.json").write_text("{}")
    found = inventory(tmp_path, "llava_video")
    assert found.splits["train"] == tuple(sorted(names))
    assert found.unread == ("mine/settings.json",)
    only = inventory(tmp_path, "llava_video", kinds=["open_ended"])
    assert only.splits["train"] == names[:1]


# The listing, and the fingerprint on it

HIDDEN = (
    ".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/._a.jsonl", "._a.jsonl", ".cache/huggingface/b.jsonl",
    "@eaDir/a.jsonl", "Thumbs.db", "desktop.ini", "a.jsonl~", "sub/.a.jsonl.swp", "sub/~$a.jsonl",
)  # fmt: skip


def test_hidden_names_are_neither_read_nor_part_of_the_address(tmp_path):
    lines(tmp_path / "a.jsonl")
    lines(tmp_path / "sub" / "b.jsonl")
    before, address = inventory(tmp_path), identify(tmp_path)
    for name in HIDDEN:
        lines(tmp_path / name)
    assert inventory(tmp_path) == before
    assert before.splits["train"] == ("a.jsonl", "sub/b.jsonl")
    assert identify(tmp_path) == address


def test_a_snapshot_of_links_into_a_cache_is_read_and_counts_by_content(tmp_path):
    snapshot = tmp_path / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    lines(tmp_path / "blobs" / "f00d", count=3)
    (snapshot / "data").mkdir()
    (snapshot / "data" / "train.jsonl").symlink_to("../../../blobs/f00d")
    assert inventory(snapshot).splits["train"] == ("data/train.jsonl",)
    plain = tmp_path / "plain"
    shutil.copytree(snapshot, plain)
    assert identify(snapshot) == identify(plain)
    whole_cache = inventory(tmp_path)
    assert "snapshots/0a1b/data/train.jsonl" in whole_cache.splits["train"]
    address = identify(snapshot)
    lines(tmp_path / "blobs" / "f00d", count=4)
    assert identify(snapshot) != address


def change_a_linked_file(root: Path) -> None:
    lines(root.parent / "elsewhere" / "c.jsonl", count=2)


def lead_a_link_to_another_folder(root: Path) -> None:
    (root / "current").unlink()
    (root / "current").symlink_to("v2")


def repair_a_link(root: Path) -> None:
    lines(root.parent / "elsewhere" / "gone.jsonl")


@pytest.mark.parametrize(
    "change", [change_a_linked_file, lead_a_link_to_another_folder, repair_a_link], ids=lambda f: f.__name__
)
def test_changed_data_changes_the_address_whatever_links_lead_to_it(tmp_path, change: Callable[[Path], None]):
    root = tmp_path / "corpus"
    lines(root / "v1" / "a.jsonl")
    lines(root / "v2" / "a.jsonl", count=2)
    lines(tmp_path / "elsewhere" / "c.jsonl")
    (root / "current").symlink_to("v1")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "gone.jsonl").symlink_to(tmp_path / "elsewhere" / "gone.jsonl")
    address = identify(root)
    assert identify(root) == address
    change(root)
    assert identify(root) != address


def test_a_second_way_to_a_file_doubles_nothing_and_is_mentioned(tmp_path):
    lines(tmp_path / "v1" / "a.jsonl")
    (tmp_path / "latest").symlink_to("v1")
    (tmp_path / "b.jsonl").symlink_to("v1/a.jsonl")
    (tmp_path / "v1" / "up").symlink_to("..")
    (tmp_path / "v1" / "itself").symlink_to("itself")
    found = inventory(tmp_path)
    assert found.splits["train"] == ("v1/a.jsonl",)
    assert sorted(found.links) == ["b.jsonl", "latest", "v1/itself", "v1/up"]
    assert found.summary() == "not read: 4 links"


def test_a_link_that_leads_nowhere_stops_a_corpus_that_would_need_it(tmp_path):
    lines(tmp_path / "a.jsonl")
    (tmp_path / "notes.csv").symlink_to("gone.csv")
    assert inventory(tmp_path).summary() == "not read: 1 link"
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl .* cannot be read"):
        inventory(tmp_path)


def test_files_are_hashed_again_only_when_they_have_changed(tmp_path, monkeypatch):
    from pipelines.dag import raw_inputs

    hashed: list[str] = []
    digest = raw_inputs.file_digest
    monkeypatch.setattr(raw_inputs, "file_digest", lambda path: (hashed.append(path.name), digest(path))[1])
    corpus, cache = tmp_path / "corpus", tmp_path / "hashes.json"
    for number in range(20):
        lines(corpus / f"{number}.jsonl", count=number)
    first = identify(corpus, cache)
    assert len(hashed) == 20
    assert identify(corpus, cache) == first
    assert len(hashed) == 20
    lines(corpus / "3.jsonl", count=9)
    assert identify(corpus, cache) != first
    assert hashed[20:] == ["3.jsonl"]


def test_a_file_of_equal_size_and_time_under_another_inode_is_read_again(tmp_path):
    corpus, cache = tmp_path / "corpus", tmp_path / "hashes.json"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text("1\n")
    os.utime(corpus / "a.jsonl", ns=(1, 1))
    first = identify(corpus, cache)
    (tmp_path / "other").write_text("2\n")
    os.utime(tmp_path / "other", ns=(1, 1))
    (tmp_path / "other").rename(corpus / "a.jsonl")
    assert identify(corpus, cache) != first


def test_times_may_stand_for_content_where_reading_takes_too_long(tmp_path, monkeypatch):
    from pipelines.dag import raw_inputs

    path = lines(tmp_path / "a.jsonl")
    monkeypatch.setattr(raw_inputs, "file_digest", lambda path: pytest.fail("nothing is read"))
    first = identify(tmp_path, read=False)
    assert identify(tmp_path, read=False) == first
    os.utime(path, ns=(5, 5))
    assert identify(tmp_path, read=False) != first
