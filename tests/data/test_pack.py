"""Packing without Ray: the plan, what is written, and that every row is accounted for."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.errors import ConfigError, StoreError
from pipelines.dag.context import StageContext
from pipelines.data.pack import run as pack
from pipelines.data.pack.accounting import check_plan, check_rows, checksum, planned_checksum
from pipelines.data.pack.assemble import Documents, assemble
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.encode import ENCODED, encode_sample
from pipelines.data.pack.encode_shards import EncodeReport
from pipelines.data.pack.mixture import Draw
from pipelines.data.pack.plan import (
    EncodedSamples,
    Plan,
    gather,
    plan_rows,
    plan_sequences,
    sample_stream,
)
from pipelines.data.pack.processor import Encoding, image_settings, load_processor
from pipelines.data.pack.sequences import ENCODED_SCHEMA, documents_of
from pipelines.data.pack.settings import read_pack_settings
from pipelines.data.pack.video_counts import VideoCounts
from pipelines.data.pack.write import PackShards, WriteTask
from pipelines.data.store.quarantine import Tally, read_quarantine
from pipelines.data.store.readers import CleanReader, PackReader, ShardReader
from pipelines.data.store.rows import CleanSample
from pipelines.data.store.shard_pipeline import Run, ShardPipeline, Tasks, run_here
from pipelines.data.store.shard_writing import CARD
from pipelines.recipe import load_recipe
from pipelines.recipe.pack import FRAME_SIDE, IMAGE_TOKEN_SIDES, Mixture, Pack, VideoBudget, frame_side
from pipelines.recipe.stages import pack_settings
from tests.support.core.qwen_tokenizer import qwen_tokenizer
from tests.support.data.clean import chats, clips, write_clean
from tests.support.naive.packing import packed_row
from tests.support.paths import ROOT

PACK = {
    "sources": ["chats", "clips"],
    "tokenizer": {"train_bpe": {"vocab_size": 300}},
    "template": "casa-1",
    "backbone": "tiny",
    "image_placement": "window_start",
    "filters": {},
    "max_failures": 0.5,
    **Pack(
        text_tokens=80,
        image_tokens=36,
        max_side=64,
        video=VideoBudget(text_tokens=80, image_tokens=160),
    ).model_dump(mode="json"),
    "seed": 0,
}
LIMITS = Limits(pictures=Budget(80, 36), video=Budget(80, 160), split=True)


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clean")
    return {
        "chats": write_clean(root / "chats", chats(300)),
        "clips": write_clean(root / "clips", clips(12)),
    }


def run_pack(output: Path, cleaned: dict[str, Path], run: Run = run_here, **changes: Any) -> dict[str, Any]:
    output.mkdir(exist_ok=True)
    context = StageContext(name="pack", settings=PACK | changes, placement={}, inputs=cleaned, output=output)
    return pack.pack_sources(context, run)


@pytest.fixture(scope="module")
def packed(cleaned, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "pack"
    run_pack(output, cleaned)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the digests, which go when the artifact is committed."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".digests"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# the whole stage


def test_every_row_is_packed_in_all_its_pieces_or_quarantined(packed, cleaned):
    encoding = Encoding(
        tokenizer=str(packed / "tokenizer"),
        template="casa-1",
        backbone="tiny",
        max_side=64,
        max_frame_side=64,
        max_video_tokens=160,
        min_frame_side=None,
        video_over_budget="smaller",
        image_placement="window_start",
    )
    processor = load_processor(encoding)
    expected, rejected = {}, Counter()
    for source, folder in cleaned.items():
        for number, row in enumerate(CleanReader(folder, "train")):
            result = encode_sample(processor, number, CleanSample.from_row(row), LIMITS)
            if isinstance(result, list):
                expected |= {(source, number, piece["part"]): piece for piece in result}
            else:
                rejected[result.reason] += 1
    found = {}
    for document in itertools.chain(*map(documents_of, PackReader(packed))):
        key = (document.source, document.row, document.part)
        assert key not in found
        assert document.occurrence == 0
        found[key] = document
    assert found.keys() == expected.keys()
    for key, document in found.items():
        piece = expected[key]
        assert document.sample_id == piece["sample_id"]
        assert document.input_ids == piece["input_ids"]
        assert document.loss_mask == piece["loss_mask"]
        assert document.image_positions == piece["image_positions"]
        assert document.turns == tuple((turn["start"], turn["end"]) for turn in piece["turns"])
        wanted = [{"source": key[0], "row": key[1]} | image for image in piece["images"]]
        assert list(document.images) == wanted
    assert Counter(entry.reason for entry in read_quarantine(packed / "quarantine.parquet")) == rejected
    assert set(rejected) == {"over_text_budget", "over_image_budget", "nothing_to_train"}
    assert max(part for _, _, part in found) >= 1  # some samples were split


def test_budgets_hold_for_each_kind_and_the_card_counts_what_is_there(packed):
    card = json.loads((packed / CARD).read_text())
    sequences = list(PackReader(packed))
    for sequence in sequences:
        budget = LIMITS.video if sequence["kind"] == "video" else LIMITS.pictures
        assert sequence["text_tokens"] == len(sequence["input_ids"]) <= budget.text
        assert sequence["image_tokens"] == sum(i["tokens"] for i in sequence["images"]) <= budget.image
        if sequence["kind"] == "video":
            assert len(sequence["documents"]) == 1
            assert None not in [image["timestamp"] for image in sequence["images"]]
    documents = list(itertools.chain(*map(documents_of, sequences)))
    for source in ("chats", "clips"):
        own = [document for document in documents if document.source == source]
        assert card["sources"][source] == {
            "rows": len({document.row for document in own}),
            "samples": sum(document.part == 0 for document in own),
            "documents": len(own),
            "without_images": sum(document.part == 0 and not document.images for document in own),
            "text_tokens": sum(len(document.input_ids) for document in own),
            "image_tokens": sum(image["tokens"] for document in own for image in document.images),
        }
    assert card["budget"] == {"text": 80, "image": 36, "video": {"text": 80, "image": 160}}
    assert sum(card["histograms"]["text"]["counts"]) == len(sequences) == card["sequences"]


def test_how_the_work_is_cut_decides_nothing_and_a_stopped_run_goes_on(
    packed, cleaned, tmp_path, monkeypatch
):
    monkeypatch.setattr(pack, "ROWS_PER_TASK", 16)
    monkeypatch.setattr(pack, "SEQUENCES_PER_SHARD", 8)
    run_pack(tmp_path / "cut", cleaned)
    assert list(PackReader(tmp_path / "cut")) == list(PackReader(packed))

    written = 0

    class Killed(BaseException):
        pass

    def dying(left: int) -> Run:
        def run(
            pipeline: ShardPipeline[Any], tasks: Tasks[Any], names: Sequence[str]
        ) -> Generator[tuple[str, bytes]]:
            nonlocal left, written
            for name in names:
                if left == 0:
                    raise Killed
                left -= 1
                yield from run_here(pipeline, tasks, [name])
                written += 1

        return run

    attempts = 0
    for left in itertools.count(3, 5):
        attempts += 1
        try:
            run_pack(tmp_path / "killed", cleaned, dying(left))
            break
        except Killed:
            assert not (tmp_path / "killed" / CARD).exists()
            (tmp_path / "killed" / ".encoded" / ".encoded-000001.arrow.4711").write_bytes(b"half a shard")
    assert attempts > 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "cut")
    shards = len(json.loads((tmp_path / "cut" / "index.json").read_text())["shards"])
    assert written == -(-300 // 16) + 1 + shards  # each shard once, over all attempts


def test_a_shard_that_holds_other_documents_than_planned_stops_the_run(cleaned, tmp_path, monkeypatch):
    real = PackShards.read

    def swapped(self: PackShards, task: WriteTask) -> Iterator[pa.Table]:
        row_D = task.row_D.copy()
        row_D[0] = (row_D[0] + 1) % 40  # another document of the same encoded shard, planned elsewhere
        return real(self, replace(task, row_D=row_D))

    monkeypatch.setattr(PackShards, "read", swapped)
    with pytest.raises(StoreError, match="does not hold the documents planned"):
        run_pack(tmp_path / "swapped", cleaned)


def test_filters_settings_reach_the_stage_and_its_card(cleaned, tmp_path):
    run_pack(tmp_path / "f", cleaned, filters={"text_length": {"min_characters": 40, "max_characters": None}})
    card = json.loads((tmp_path / "f" / CARD).read_text())
    removed = card["filters"]["text_length"]["count"]
    assert removed > 20
    assert (tmp_path / "f" / "filtered.parquet").is_file()
    quarantined = sum(card["quarantine"].values())
    assert sum(own["rows"] for own in card["sources"].values()) + removed + quarantined == 312


@pytest.mark.slow
def test_a_mixture_decides_how_often_rows_occur_in_all_their_pieces(packed, cleaned, tmp_path):
    run_pack(tmp_path / "pack", cleaned, mixture={"passes": {"chats": 0.5, "clips": 3.0}})
    once = {(d.source, d.row, d.part): d for sequence in PackReader(packed) for d in documents_of(sequence)}
    pieces = Counter((source, row) for source, row, _ in once)
    rows = {name: len([1 for source, _ in pieces if source == name]) for name in ("chats", "clips")}
    found = [d for sequence in PackReader(tmp_path / "pack") for d in documents_of(sequence)]
    occurring = {(d.source, d.row, d.occurrence) for d in found}
    assert len(found) == sum(pieces[source, row] for source, row, _ in occurring)
    assert all(d.input_ids == once[d.source, d.row, d.part].input_ids for d in found)
    drawn = Counter((source, pass_) for source, _, pass_ in occurring)
    assert drawn == {
        ("chats", 0): round(rows["chats"] / 2),
        **{("clips", n): rows["clips"] for n in range(3)},
    }
    mixture = json.loads((tmp_path / "pack" / CARD).read_text())["mixture"]["sources"]
    assert mixture["chats"]["left_out"] == rows["chats"] - round(rows["chats"] / 2)
    for name, share in mixture.items():
        realised = len([1 for source, _, _ in occurring if source == name]) / len(occurring)
        assert share["realised"] == pytest.approx(realised, abs=1e-6)
        assert share["asked"] == pytest.approx(realised, rel=0.01)


def test_a_paper_sized_model_packs_with_its_own_tokenizer_tower_and_template(tmp_path):
    qwen_tokenizer().save_pretrained(tmp_path / "qwen")
    cleaned = {"chats": write_clean(tmp_path / "chats", chats(20))}
    what = {
        "sources": ["chats"],
        "tokenizer": {"raw": {}},
        "tokenizer_path": str(tmp_path / "qwen"),
        "template": "qwen-1",
        "backbone": "qwen2_5_vl",
        "text_tokens": 2048,
        "image_tokens": 20480,
        "max_side": 896,
    }
    run_pack(tmp_path / "qwen2_5_vl", cleaned, **what)
    ids = qwen_tokenizer().convert_tokens_to_ids(["<|im_start|>", "<|vision_end|>"])
    for document in itertools.chain(*map(documents_of, PackReader(tmp_path / "qwen2_5_vl"))):
        assert document.input_ids[0] == ids[0]
        for image, position in zip(document.images, document.image_positions, strict=True):
            assert image["height"] % 28 == image["width"] % 28 == 0
            assert image["tokens"] == image["height"] * image["width"] // 28**2
            assert document.input_ids[position] == ids[1]


def test_the_recipe_and_the_towers_agree_about_sides():
    for backbone, side in IMAGE_TOKEN_SIDES.items():
        settings = image_settings(backbone, 896, frame_side(896, None))
        assert settings.factor == side
        assert (settings.max_side, settings.max_frame_side) == (896, FRAME_SIDE)
        assert image_settings(backbone, 224, frame_side(224, None)).max_frame_side == 224
        assert image_settings(backbone, 896, frame_side(896, 672)).max_frame_side == 672
    with pytest.raises(ConfigError, match="no backbone named 'huge'"):
        image_settings("huge", 896, 448)


def test_a_tokenizer_that_is_not_there_or_not_the_templates_is_refused(packed, cleaned, tmp_path):
    with pytest.raises(ConfigError, match="No tokenizer can be loaded from"):
        run_pack(tmp_path / "a", cleaned, tokenizer={"path": str(tmp_path / "none")})
    own = {"path": str(packed / "tokenizer")}
    with pytest.raises(ConfigError, match="has no token"):
        run_pack(tmp_path / "b", cleaned, tokenizer=own, template="qwen-1")


# assembling


def test_assembling_by_columns_is_assembling_token_by_token(packed, cleaned, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "remove_tree", lambda folder: None)
    run_pack(tmp_path / "kept", cleaned)
    rows = list(ShardReader(sorted((tmp_path / "kept" / ".encoded").glob("*.arrow")), ENCODED))
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(rows), 200).tolist()
    occurrences = rng.integers(0, 5, 200)
    offsets = np.concatenate([[0], np.sort(rng.choice(np.arange(1, 200), 40, replace=False)), [200]])
    video = rng.random(41) < 0.5
    assembled = assemble(
        Documents(
            rows=pa.RecordBatch.from_pylist([rows[n] for n in chosen], schema=ENCODED_SCHEMA),
            source_D=pa.array([f"s{n % 3}" for n in chosen]),
            occurrence_D=occurrences.astype(np.int32),
            offsets_S=offsets,
            video_S=video,
        )
    )
    for number, row in enumerate(assembled.to_pylist()):
        own = range(offsets[number], offsets[number + 1])
        assert row == packed_row(
            [(f"s{chosen[at] % 3}", rows[chosen[at]]) for at in own],
            "video" if video[number] else "image",
            [int(occurrences[at]) for at in own],
        )


# planning


@st.composite
def reports(draw):
    """What encoding tasks of one to three sources might report."""
    found, owners = [], []
    for source in range(draw(st.integers(1, 3))):
        row = 0
        for _ in range(draw(st.integers(0, 3))):
            pieces = draw(st.lists(st.integers(1, 3), max_size=12))
            rows = np.repeat(np.arange(row, row + len(pieces)), pieces)
            row += len(pieces)
            size = len(rows)
            numbers = st.lists(st.integers(1, 80), min_size=size, max_size=size)
            video = draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
            found.append(
                EncodeReport(
                    row_E=rows.astype(np.int32),
                    part_E=np.concatenate([np.empty(0), *map(np.arange, pieces)]).astype(np.int32),
                    text_E=np.array(draw(numbers), np.int32),
                    image_E=np.array(draw(numbers), np.int32) % 37,
                    video_E=np.repeat(np.array(video, bool), pieces),
                    rejected=np.empty(0, np.int32),
                    tally=Tally(),
                    videos=VideoCounts(),
                )
            )
            owners.append(f"s{source}")
    return ["s0", "s1", "s2"], owners, found


EACH_ONCE = Mixture()


def planned(encoded: EncodedSamples, seed: int = 0) -> Plan:
    return plan_sequences(encoded, sample_stream(encoded, plan_rows(encoded, EACH_ONCE), seed), LIMITS, seed)


@settings(deadline=None)
@given(case=reports(), seed=st.integers(0, 3))
def test_a_plan_holds_every_sample_once_within_its_budget_and_videos_alone(case, seed):
    encoded = gather(*case)
    if not len(encoded):
        with pytest.raises(ConfigError, match="no sample to pack"):
            planned(encoded)
        return
    plan = planned(encoded, seed)
    check_plan(encoded, plan, plan_rows(encoded, EACH_ONCE))
    assert sorted(plan.sample_M.tolist()) == list(range(len(encoded)))
    for number, video in enumerate(plan.video_S):
        own = plan.sample_M[plan.offsets_S[number] : plan.offsets_S[number + 1]]
        assert len(own) >= 1
        assert (encoded.video_E[own] == video).all()
        assert len(own) == 1 if video else encoded.text_E[own].sum() <= LIMITS.pictures.text
        assert video or encoded.image_E[own].sum() <= LIMITS.pictures.image
    other = planned(encoded, seed)
    assert all((getattr(plan, name) == getattr(other, name)).all() for name in ("sample_M", "offsets_S"))


@settings(deadline=None)
@given(case=reports())
def test_shards_starts_and_sources_locate_each_sample(case):
    sources, owners, parts = case
    encoded = gather(sources, owners, parts)
    at = 0
    for shard, (owner, part) in enumerate(zip(owners, parts, strict=True)):
        assert encoded.shard_starts[shard] == at
        for own in range(len(part.row_E)):
            assert sources[encoded.source_of(np.array([at + own]))[0]] == owner
            assert encoded.row_E[at + own] == part.row_E[own]
        at += len(part.row_E)
    assert at == len(encoded) == encoded.shard_starts[-1]


def test_the_pieces_of_a_row_follow_one_another_in_the_stream():
    pieces = [2, 1, 3]
    report = EncodeReport(
        row_E=np.repeat(np.arange(3), pieces).astype(np.int32),
        part_E=np.concatenate([np.arange(n) for n in pieces]).astype(np.int32),
        text_E=np.ones(6, np.int32),
        image_E=np.ones(6, np.int32),
        video_E=np.zeros(6, bool),
        rejected=np.empty(0, np.int32),
        tally=Tally(),
        videos=VideoCounts(),
    )
    encoded = gather(["a"], ["a"], [report])
    chunks = list(sample_stream(encoded, plan_rows(encoded, Mixture(passes={"a": 2})), 0))
    assert np.concatenate([samples for samples, _ in chunks]).tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert np.concatenate([passes for _, passes in chunks]).tolist() == [0] * 6 + [1] * 6


# accounting


def rows_of(*pieces: int) -> tuple[Any, Any]:
    numbers = [row for row, count in enumerate(pieces) for _ in range(count)]
    parts = [part for count in pieces for part in range(count)]
    return np.array(numbers, np.int32), np.array(parts, np.int32)


def test_rows_that_add_up_pass():
    rows, parts = rows_of(1, 0, 3, 0, 2)
    check_rows("s", np.array([1, 0, 1, 1, 1], bool), np.array([3]), rows, parts)


@pytest.mark.parametrize(
    ("keep", "rejected", "rows", "parts", "offender"),
    [
        ([1, 1], [], [0], [0], "rows 1 of"),  # lost
        ([1, 0], [], [0, 1], [0, 0], "rows 1 of"),  # filtered, and packed all the same
        ([1, 1], [1], [0, 1], [0, 0], "rows 1 of"),  # quarantined, and packed all the same
        ([1, 0], [1], [0], [0], "rows 1 of"),  # filtered and quarantined
        ([1, 1], [], [0, 0, 1], [0, 0, 0], "rows 0 of"),  # twice
        ([1, 1], [], [0, 0, 1], [0, 2, 0], "rows 0 of"),  # a piece missing
        ([1, 1], [], [0, 1, 1], [0, 0, 2], "rows 1 of"),
        ([1, 1], [], [0, 1, 0], [0, 0, 1], "rows 0 of"),  # a piece out of order
    ],
)
def test_rows_that_do_not_add_up_are_named(keep, rejected, rows, parts, offender):
    columns = [np.array(column, np.int32) for column in (rejected, rows, parts)]
    with pytest.raises(StoreError, match="does not add up") as caught:
        check_rows("s", np.array(keep, bool), *columns)
    assert offender in caught.value.why


@pytest.mark.parametrize(
    ("samples", "occurrences"),
    [
        ([0, 1, 2], [0, 0, 0]),  # sample 3 left out
        ([0, 1, 2, 3, 3], [0, 0, 0, 0, 0]),  # one pass twice
        ([0, 1, 2, 3, 3], [0, 0, 0, 0, 2]),  # a pass skipped
        ([0, 1, 1, 2, 3], [0, 0, 1, 0, 0]),  # one piece of row 1 in another pass, the other not
    ],
)
def test_a_plan_that_loses_or_repeats_a_sample_is_refused(samples, occurrences):
    rows, parts = rows_of(1, 2, 1)
    encoded = EncodedSamples(
        sources=("s",),
        source_starts=np.array([0, 4]),
        shard_starts=np.array([0, 4]),
        row_E=rows,
        part_E=parts,
        text_E=np.ones(4, np.int32),
        image_E=np.ones(4, np.int32),
        video_E=np.zeros(4, bool),
    )

    def plan(samples: list[int], occurrences: list[int]) -> Plan:
        return Plan(
            sample_M=np.array(samples, np.int32),
            occurrence_M=np.array(occurrences, np.int32),
            offsets_S=np.arange(len(samples) + 1),
            video_S=np.zeros(len(samples), bool),
        )

    drawn = Draw(sources=("s",), available=(3,), taken=(4,), asked=(1.0,))
    check_plan(encoded, plan([3, 1, 0, 2, 2, 1], [0, 0, 0, 1, 0, 1]), drawn)
    with pytest.raises(StoreError, match="not planned in all their pieces"):
        check_plan(encoded, plan(samples, occurrences), drawn)
    with pytest.raises(StoreError, match="3 rows are planned"):
        check_plan(encoded, plan([0, 1, 2, 3], [0, 0, 0, 0]), drawn)


def test_a_checksum_depends_on_every_document_and_on_no_order():
    identities = [*itertools.product(range(3), range(4), range(3), range(3))]
    columns = np.array(identities).T
    whole = checksum(*columns)
    assert whole == checksum(*columns[:, np.random.default_rng(0).permutation(len(identities))])
    sums = {checksum(*np.delete(columns, n, axis=1)) for n in range(len(identities))}
    assert len(sums | {whole}) == len(identities) + 1
    assert checksum(
        *columns,
    ) != checksum(columns[0], columns[1], columns[3], columns[2] + 1)


def test_a_shards_planned_checksum_is_that_of_its_documents():
    rows, parts = rows_of(1, 2, 1)
    report = EncodeReport(
        row_E=rows,
        part_E=parts,
        text_E=np.full(4, 40, np.int32),
        image_E=np.ones(4, np.int32),
        video_E=np.zeros(4, bool),
        rejected=np.empty(0, np.int32),
        tally=Tally(),
        videos=VideoCounts(),
    )
    encoded = gather(["a", "b"], ["a", "b"], [report, report])
    plan = planned(encoded)
    for start, stop in ((0, 1), (1, len(plan)), (0, len(plan))):
        own = slice(plan.offsets_S[start], plan.offsets_S[stop])
        samples = plan.sample_M[own].tolist()
        by_hand = sum(
            checksum(n // 4, np.array([rows[n % 4]]), np.array([parts[n % 4]]), np.array([0]))
            for n in samples
        )
        assert planned_checksum(encoded, plan, start, stop) == by_hand % 2**64


# killed for real


def attempt(cleaned: dict[str, Path], output: Path, workers: int, more: int | None = None) -> bool:
    """One attempt in a process group of its own, killed once it has ``more`` files; whether it ended."""
    settings = {
        "what": PACK,
        "inputs": {name: str(folder) for name, folder in cleaned.items()},
        "output": str(output),
        "workers": workers,
    }
    file = output.with_suffix(".json")
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "tests.support.data.pack_worker", str(file)]
    before = _files(output)
    with subprocess.Popen(command, start_new_session=True, cwd=ROOT) as process:
        while process.poll() is None:
            time.sleep(0.01)
            if more is not None and _files(output) >= before + more:
                os.killpg(process.pid, signal.SIGKILL)  # its own group: the attempt and its workers
                return False
        assert process.returncode == 0
        return True


def _files(output: Path) -> int:
    """Finished and unfinished shards and reports."""
    count = 0
    for folder in (output / ".encoded", output / ".reports", output):
        with contextlib.suppress(FileNotFoundError):  # not there yet, or no longer
            count += len(os.listdir(folder))
    return count


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_point_and_with_any_number_of_workers_the_bytes_are_the_same(tmp_path):
    cleaned = {
        "chats": write_clean(tmp_path / "chats", chats(400)),
        "clips": write_clean(tmp_path / "clips", clips(20)),
    }
    assert attempt(cleaned, tmp_path / "one", 1)
    expected = contents(tmp_path / "one")
    rng = np.random.default_rng()  # other points each time: none may matter
    for workers in (2, 4):
        assert attempt(cleaned, tmp_path / str(workers), workers)
        assert contents(tmp_path / str(workers)) == expected
        output = tmp_path / f"killed-{workers}"
        points = rng.integers(1, 90, 3).tolist()
        for more in points:
            if attempt(cleaned, output, workers, more):
                break
        assert attempt(cleaned, output, workers)
        assert contents(output) == expected, f"killed after {points} files"


# the recipe's settings


def test_files_that_a_recipe_names_count_by_content_and_come_back_by_path(tmp_path):
    folder, hashes = tmp_path / "tokenizer", tmp_path / "hashes.json"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    hashes.write_text("[]")

    def settings(tokenizer: Path, lists: Path) -> tuple[dict[str, Any], dict[str, str]]:
        recipe = load_recipe(
            "quickstart",
            [
                f"model.tokenizer={{path: {tokenizer}}}",
                f"data.filters={{decontamination: {{hashes: [{lists}]}}}}",
            ],
        )
        return pack_settings(recipe, cache=tmp_path / "cache.json")

    what, location = settings(folder, hashes)
    assert str(tmp_path) not in json.dumps(what)
    found = read_pack_settings(what | location)
    assert found.tokenizer.path == str(folder)
    assert found.tokenizer.train_bpe is None
    assert found.filters.decontamination is not None
    assert found.filters.decontamination.hashes == [str(hashes)]
    moved = folder.rename(tmp_path / "moved")
    assert settings(moved, hashes)[0] == what
    hashes.write_text("[1]")
    assert settings(moved, hashes)[0] != what
    for missing in ((tmp_path / "none", hashes), (moved, tmp_path / "none")):
        with pytest.raises(ConfigError, match="There is no"):
            settings(*missing)
