"""``casa data``, ``casa verify`` and ``casa prepare`` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.cli.shared import run_handle
from pipelines.cli.show.prepared import collect, show_prepared
from pipelines.cost import workload
from pipelines.cost.listing import LISTINGS
from pipelines.dag import artifact
from pipelines.dag.plan import PlannedStage
from pipelines.data.filter.hash_lists import known_pictures
from pipelines.data.pack.sequences import documents_of
from pipelines.data.read import READERS, open_reader
from pipelines.data.store.readers import CleanReader, PackReader
from tests.support.dag.planned import planned_stage
from tests.support.data.clean import picture
from tests.support.data.layouts import write_every_layout
from tests.support.data.prepared import PACK, make_store, write_photos
from tests.support.naive.windows import naive_windows
from tests.support.paths import ROOT

PAPER = LISTINGS / "paper.json"
RATES = ["clean_megapixels=50", "video_megapixels=20", "encode_tokens=200000", "pack_samples=20000"]
GIVEN = [part for rate in RATES for part in ("--rate", rate)]


def casa(*arguments: object, code: int = 0, columns: int = 120) -> str:
    """Run ``casa``; returns everything it printed."""
    result = CliRunner().invoke(app, [str(own) for own in arguments], env={"COLUMNS": str(columns)})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> dict[str, Path]:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def packed(store) -> PackReader:
    return PackReader(store["pack"])


# inspect


def test_a_sequence_is_shown_token_for_token(store, packed):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(store["pack"] / "tokenizer")
    for number in [*packed.by_kind["image"][:4].tolist(), *packed.by_kind["video"][:2].tolist()]:
        shown = json.loads(casa("data", "inspect", store["pack"], "--sequence", number, "--json"))
        row = packed[number]
        assert (shown["kind"], shown["text_tokens"], shown["image_tokens"]) == (
            row["kind"],
            row["text_tokens"],
            row["image_tokens"],
        )
        assert shown["trained_tokens"] == sum(row["loss_mask"])
        for own, document in zip(shown["documents"], documents_of(row), strict=True):
            mask = [span["trained"] for span in own["spans"] for _ in range(span["tokens"])]
            assert mask == list(document.loss_mask)
            starts = np.cumsum([0, *(span["tokens"] for span in own["spans"])]).tolist()
            for span, start, end in zip(own["spans"], starts, starts[1:], strict=False):
                ids = list(document.input_ids[start:end])
                assert span["text"] == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_windows_are_those_of_the_definition(store, packed):
    for number in [*packed.by_kind["image"][:6].tolist(), int(packed.by_kind["video"][0])]:
        shown = json.loads(casa("data", "inspect", store["pack"], "--sequence", number, "--json"))
        for own, document in zip(shown["documents"], documents_of(packed[number]), strict=True):
            outline: list[int] = []
            for at in range(len(document.input_ids)):
                here = [i for i, position in enumerate(document.image_positions) if position == at]
                outline += [document.images[i]["tokens"] for i in here] + [0]
            tokens, _ = naive_windows([outline])
            names = list(dict.fromkeys(token.window for token in tokens if token.window is not None))
            expected = [0 if p.window is None else names.index(p.window) + 1 for p in tokens]
            found = [span["window"] for span in own["spans"] for _ in range(span["tokens"])]
            assert found == expected
            pictures = [(picture["row"], picture["media"], picture["tokens"]) for picture in own["pictures"]]
            assert pictures == [(image["row"], image["media"], image["tokens"]) for image in document.images]


def test_a_sequence_is_printed_with_its_budgets_documents_and_pictures(store, packed):
    number = max(packed.by_kind["image"].tolist(), key=lambda n: len(packed[n]["documents"]))
    row = packed[number]
    text = casa("data", "inspect", store["pack"], "--sequence", number)
    assert f"{row['text_tokens']} of 80" in text
    assert f"{row['image_tokens']} of 36" in text
    for at, document in enumerate(row["documents"]):
        assert re.search(rf"document {at} +{document['source']} +{re.escape(document['sample_id'])}", text)
    assert text.count("▣") == len(row["images"])


def test_the_page_has_each_picture_of_the_sequence(store, packed, tmp_path):
    for kind in ("image", "video"):
        number = max(packed.by_kind[kind].tolist(), key=lambda n: len(packed[n]["images"]))
        page = tmp_path / f"{kind}.html"
        casa("data", "inspect", store["pack"], "--sequence", number, "--page", page)
        html = page.read_text()
        assert html.count("data:image/jpeg;base64,") == len(packed[number]["images"]) > 0
        assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)


def test_a_row_of_a_clean_artifact_is_shown_without_its_bytes(store):
    reader = CleanReader(store["chats"], "train")
    number = next(n for n in range(len(reader)) if len(reader.without_bytes(n)["media"]) > 1)
    row = reader[number]
    shown = json.loads(casa("data", "inspect", store["chats"], "--row", number, "--json"))
    assert [media["bytes"] for media in shown["media"]] == [len(media["bytes"]) for media in row["media"]]
    assert [part["text"] for part in shown["parts"]] == [part["text"] for part in row["parts"]]
    text = casa("data", "inspect", store["chats"], "--row", number)
    for media in row["media"]:
        assert media["sha256"][:16] in text
        assert f"{media['width']}x{media['height']}" in text
    for part in row["parts"]:
        assert part["kind"] == "image" or part["text"] in text


def test_brackets_in_a_text_are_shown_and_not_obeyed(store):
    assert "<script>alert('x')</script> & <b>bold</b>" in casa("data", "inspect", store["chats"], "--row", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{chats}", "--sequence", "1"], "Use `--row`."),
        (["{pack}", "--row", "1"], "Use `--sequence`."),
        (["{pack}", "--sequence", "999999"], "There is no sequence 999999"),
        (["{chats}", "--row", "999999"], "There is no row 999999"),
        (["{root}"], "not an artifact"),
        (["nothing-of-that-name", "--store", "{root}"], "There is no run"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(store, arguments, message):
    names = {**store, "root": store["pack"].parent}
    assert message in casa("data", "inspect", *(own.format(**names) for own in arguments), code=2)


# card, hash, verify


def test_a_data_card_is_written_as_a_page(store, tmp_path):
    page = tmp_path / "pages" / "pack.html"
    assert str(page) in casa("data", "card", store["pack"], "--output", page, columns=400)
    assert "Data card" in page.read_text()
    assert "not an artifact" in casa("data", "card", tmp_path, code=2)


def test_pictures_are_hashed_into_a_list_that_decontamination_reads(tmp_path):
    output = tmp_path / "hashes.parquet"
    (tmp_path / "eval").mkdir()
    for number in range(3):
        (tmp_path / "eval" / f"{number}.png").write_bytes(picture(40 + 8 * number, 32).data)
    assert "3 pictures" in casa("data", "hash", tmp_path / "eval", output)
    assert len(known_pictures((str(output),), 0).sha256) == 3
    (tmp_path / "empty").mkdir()
    assert "no pictures" in casa("data", "hash", tmp_path / "empty", output, code=2)


def test_verify_prints_one_line_per_artifact_and_ends_with_1_on_a_fault(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("12")
        artifact.commit(tmp_path / name, {"kind": name, "fingerprint": name}, {}, {})
    stages = [
        {"name": name, "kind": name, "fingerprint": name, "folder": str(tmp_path / name)}
        for name in ("a", "b", "not-made-yet")
    ]
    run = {"recipe": "toy", "ray": {"address": "local"}, "endpoint": "http://127.0.0.1:9", "stages": stages}
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / "run.json").write_text(json.dumps(run))
    assert casa("verify", "--store", tmp_path).splitlines() == ["a: intact", "b: intact"]
    (tmp_path / "b" / "data").write_text("1x")
    output = casa("verify", "--store", tmp_path, code=1)
    assert "a: intact" in output
    assert "b: `data` was altered" in output
    found = json.loads(casa("verify", "b", "--store", tmp_path, "--json", code=1))
    assert [(own["artifact"], list(own["faults"])) for own in found] == [("b", ["data"])]
    assert "intact" in casa("verify", tmp_path / "a")
    assert "no stage c" in casa("verify", "c", "--store", tmp_path, code=2)
    assert "is not an artifact" in casa("verify", tmp_path, code=2)


# plan


def test_the_papers_mixture_is_planned_for_eight_nodes():
    options = ["--nodes", 8, "--cpus-per-node", 64, "--network-gbps", 25, *GIVEN]
    shown = json.loads(casa("data", "plan", "--listing", PAPER, *options, "--json"))
    assert shown["budgets"] == {"text": 2048, "image": 20_480}
    assert shown["clean"]["bound_by"] in ("cores", "network")
    listed = json.loads(PAPER.read_text())["sources"]
    rows = {own["name"]: sum(file["rows"] for file in own["files"]) for own in listed}
    assert {own["name"]: own["rows"] for own in shown["sources"]} == rows
    text = casa("data", "plan", "--listing", PAPER, *options)
    assert "8 x 64 cores, 25 Gbit/s" in text
    assert text.count("as given") == len(RATES)
    assert "assumed" in text


def test_a_plan_fits_a_terminal_of_80_columns():
    text = casa("data", "plan", "--listing", PAPER, *GIVEN, columns=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_rates_come_from_the_committed_benchmark_and_say_so():
    measured = json.loads(workload.RATES.read_text())
    shown = json.loads(casa("data", "plan", "--listing", PAPER, "--json"))
    for name, rate in shown["cluster"]["rates"].items():
        assert rate["value"] == measured["rates"][name]
        assert measured["date"] in rate["source"]


def test_a_missing_rate_is_asked_for(tmp_path):
    empty = tmp_path / "rates.json"
    empty.write_text("{}")
    output = casa("data", "plan", "--listing", PAPER, "--rates", empty, *GIVEN[:-2], code=2)
    assert "Give `--rate pack_samples=NUMBER`" in output
    assert "no rate" in casa("data", "plan", "--listing", PAPER, "--rate", "pack_samples=0", code=2)


def recipe_of(folder: Path, reader: str, path: Path) -> Path:
    """A recipe with one source."""
    recipe = (ROOT / "pipelines" / "recipes" / "quickstart.yaml").read_text()
    start, end = recipe.index("    vqa:"), recipe.index("  max_failures")
    sources = f"    mine: {{reader: {reader}, path: {path}}}\n"
    ratio = "[0, 1]" if reader in ("live_whisperx", "llava_video") else "[1, 0]"
    text = (recipe[:start] + sources + recipe[end:]).replace("[3, 1]", ratio)
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def test_a_recipes_corpora_are_planned_from_their_files(tmp_path):
    write_photos(tmp_path / "photos", count=60)
    mine = recipe_of(tmp_path, "finevision", tmp_path / "photos")
    shown = json.loads(casa("data", "plan", mine, *GIVEN, "--json"))
    assert [own["rows"] for own in shown["sources"]] == [60]
    assert shown["budgets"] == {"text": 1152, "image": 320}
    twice = ["--set", "pack.mixture.passes={mine: 2}"]
    shown = json.loads(casa("data", "plan", mine, *twice, *GIVEN, "--json"))
    assert [own["samples"] for own in shown["sources"]] == [120]


HELD_OUT = {
    "finevision": "ramps/validation-00000-of-00001.parquet",
    "image_text": "dev/a.jsonl",
    "live_whisperx": "val.jsonl",
    "llava_midtraining": "test/0.parquet",
    "llava_onevision": "from_value/test-0.parquet",
    "llava_video": "0_30_s_nextqa/0_30_s_nextqa_mc_test_qa_processed.json",
}
"""A file of each layout that is held out by its name, a copy of one that is not."""


@pytest.mark.parametrize("reader", READERS)
def test_a_plan_of_a_published_layout_says_which_file_falls_into_which_split(tmp_path, reader):
    write_every_layout(tmp_path)
    root = tmp_path / reader
    trained = open_reader(reader, str(root), "mine", {}).inventory().splits["train"]
    held_out = root / HELD_OUT[reader]
    held_out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / next(name for name in trained if name.endswith(held_out.suffix)), held_out)
    (root / "extra.csv").write_text("a,b")
    mine = recipe_of(tmp_path, reader, root)
    text = casa("data", "plan", mine, *GIVEN, columns=400)
    assert re.search(rf"mine, train: {len(trained)} \([^)]*\): {re.escape(', '.join(trained))}", text)
    assert re.search(rf"mine, test: 1 \([^)]*\): {re.escape(HELD_OUT[reader])}", text)
    assert "mine, not read: 1 .csv: extra.csv" in text
    files = json.loads(casa("data", "plan", mine, *GIVEN, "--json"))["files"]["mine"]
    assert files["splits"] == {"train": list(trained), "test": [HELD_OUT[reader]]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to plan"),
        (["quickstart"], "not there yet"),
        (["quickstart", "--listing", str(PAPER)], "not of both"),
        (["--listing", "missing.json"], "no listing"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_remedy(arguments, message):
    assert message in casa("data", "plan", *arguments, *GIVEN, code=2)


# prepare


def planned(store: dict[str, Path]) -> list[PlannedStage]:
    stages = (("clean-chats", "chats", "clean"), ("clean-clips", "clips", "clean"), ("pack", "pack", "pack"))
    return [
        planned_stage(name, kind, store[part], fingerprint=store[part].name, status="done")
        for name, part, kind in stages
    ]


def test_only_the_stages_that_prepare_data_are_run(monkeypatch, tmp_path):
    ran: list[str] = []

    def stop_here(opened, command, **options):
        ran.extend(stage.spec.kind for stage in opened.stages)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_handle, "run_stages", stop_here)
    CliRunner().invoke(app, ["prepare", "quickstart", "--set", f"where.store={tmp_path}"])
    assert [kind for kind, _ in groupby(sorted(ran))] == ["clean", "corpus", "pack"]
    assert ran.count("pack") == 1


def test_the_end_of_preparing_shows_fill_shares_and_what_was_left_out(store, capsys):
    complete_card(store["chats"], "chats")
    complete_card(store["clips"], "clips")
    stages = planned(store)
    show_prepared(stages, {}, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    card = json.loads((store["pack"] / "card.json").read_text())
    for own in card["by_kind"].values():
        assert f"{own['sequences']:,} {own['lower_bound']:,}" in text
    for source in PACK["sources"]:
        assert re.search(rf"{source} .* {card['mixture']['sources'][source]['asked']:.2%}", text)
    for name, report in card["filters"].items():
        assert f"{name} {report['count']:,}" in text
    for reason, count in card["quarantine"].items():
        assert f"{reason} {count:,}" in text
    assert str(store["pack"]) in text
    assert "data cards: casa data card" in text


def test_scripts_get_the_same_as_json(store, capsys):
    complete_card(store["chats"], "chats")
    complete_card(store["clips"], "clips")
    stages = planned(store)
    show_prepared(stages, {"pack": {"content_digest": "d"}}, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["event"] == "result"
    assert shown["pack"] == json.loads((store["pack"] / "card.json").read_text())
    assert shown["digests"] == {"pack": "d"}
    assert collect([replace(stage) for stage in stages])["artifacts"]["pack"] == str(store["pack"])


def complete_card(folder: Path, source: str) -> None:
    """What the clean stage would have written beside what its readers need."""
    card = json.loads((folder / "card.json").read_text())
    rows = card["splits"]["train"]["rows"]
    card["splits"]["train"] |= {"records": rows}
    (folder / "card.json").write_text(json.dumps(card | {"source": source, "quarantine": {}}))


@pytest.mark.slow
def test_a_recipe_is_prepared_and_then_found_prepared(tmp_path):
    settings = [
        f"where.store={tmp_path / 'runs'}",
        "data.sources.vqa.make.train_rows=240",
        "data.sources.vqa.make.test_rows=24",
        "data.sources.live.make.train_clips=8",
        "data.sources.live.make.test_clips=2",
        "data.max_failures=0.5",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    try:
        first = casa("prepare", "quickstart", "--plain", *options)
        assert "casa data card" in first
        assert "already done" not in first
        again = casa("prepare", "quickstart", "--plain", *options)
        assert again.count("already done") == 5
        assert first.partition("Sequences")[2] == again.partition("Sequences")[2]
        shown = casa("data", "inspect", "pack", "--store", tmp_path / "runs", "--sequence", 0)
        assert "document 0" in shown
    finally:
        casa("stop", "--store", tmp_path / "runs")
