"""The benchmarks run, and what they check beside timing holds; no timing is judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import dag_overhead, decode, stream
from benchmarks.gpu import run as gpu
from benchmarks.gpu.parity import FUSIONS
from benchmarks.measure import slope
from benchmarks.plot import Line, Panel, figure
from tests.support.paths import ROOT

SMALL = ("--hidden", "32", "--layers", "2", "--side", "32")
TOY = ("--device", "cpu", "--scale", "tiny", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The benchmarks choose a number of threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("robust", [True, False])
def test_a_slope_is_found_through_noise_and_its_interval_holds_it(robust: bool):
    steps = np.arange(1000.0)
    values = 3.0 * steps + np.random.default_rng(0).normal(0, 50, 1000)
    found = slope(steps.tolist(), values.tolist(), robust=robust)
    assert found.low < 3.0 < found.high
    assert found.high - found.low < 0.1


def test_a_hiccup_does_not_move_a_robust_slope():
    values = [5.0] * 500
    values[400:410] = [500.0] * 10
    assert slope(range(500), values).value == 0
    assert slope(range(500), values, robust=False).value > 0


def test_too_few_points_have_no_interval():
    assert math.isnan(slope([1.0, 2.0], [1.0, 2.0]).low)


def test_resident_memory_sees_what_is_kept_and_what_is_let_go():
    # In a process of its own: in this one earlier tests' memory may be let go at the same moment.
    script = """
import numpy as np
from benchmarks.measure import resident_bytes
before = resident_bytes()
kept = np.ones(2**23)
with_it = resident_bytes()
del kept
print(with_it - before, resident_bytes() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with_it, without = map(int, done.stdout.split())
    assert with_it > 0.9 * 8 * 2**23
    assert without < 2**23


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_picture_names_its_axes_and_draws_every_line_within_them(logarithmic: bool):
    lines = [Line(label=f"<{n}>", points=[(0, 1 + n), (10, 40 * n + 1)]) for n in range(3)]
    drawn = figure(
        [Panel(title="Time", x="frame", y="ms", lines=lines, logarithmic=logarithmic)], caption="c"
    )
    tree = ElementTree.fromstring(drawn)
    texts = [node.text for node in tree.iter() if node.tag.endswith("text")]
    assert {"Time", "frame", "ms", "<0>", "<1>", "<2>"} <= set(texts)
    width, height = (float(n) for n in tree.attrib["viewBox"].split()[2:])
    polylines = [node for node in tree.iter() if node.tag.endswith("polyline")]
    assert len(polylines) == 3
    for node in polylines:
        for point in node.attrib["points"].split():
            x, y = (float(part) for part in point.split(","))
            assert 0 < x < width
            assert 0 < y < height


@pytest.mark.slow
def test_streams_grow_older_and_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sizes = ("--frames", "60", "--insertion-frames", "30", "--words", "2")
    stream.main(["frames", "--together", *SMALL, *sizes, "--results", str(tmp_path)])
    found = json.loads((tmp_path / "stream_frames.json").read_text())
    tokens = {course["name"]: course["last"]["kv_tokens"] for course in found["courses"]}
    # Four tokens of text a frame, and for insertion four of the picture; one before the first frame, and two
    # of the last frame still to be read.
    assert tokens["CA"] == tokens["CASA"] == 4 * 60 - 1
    assert tokens["CA, bounded text"] <= 16 + 128 + 32
    assert tokens["insertion"] == 8 * 30 - 1
    (bounded,) = (course for course in found["courses"] if course["drops"])
    assert bounded["name"] == "CA, bounded text"
    ElementTree.fromstring((tmp_path / "stream_frames.svg").read_text())
    assert "insertion" in capsys.readouterr().out


@pytest.mark.slow
def test_a_bounded_stream_is_judged_by_the_growth_of_its_time_and_memory(tmp_path: Path):
    sizes = ("--frames", "150", "--words", "2", "--bounded", "--together")
    status = stream.main(["frames", *SMALL, *sizes, "--results", str(tmp_path)])
    found = json.loads((tmp_path / "stream_frames_bounded.json").read_text())
    assert [course["name"] for course in found["courses"]] == ["CA, bounded text", "control"]
    page = (tmp_path / "stream_frames_bounded.md").read_text()
    assert page.rstrip().endswith("FAIL" if status else "PASS")


def test_restored_streams_are_compared(tmp_path: Path):
    stream.main(["restore", "--streams", "2", "--latest", "4", "--after", "2", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "stream_restore.json").read_text())
    for way in ("greedy", "sampled"):
        assert found["summary"][way]["exact: tokens that differ"] == 0
        assert found["summary"][way]["tokens said in them"] > 0
    assert "RANDOM WEIGHTS" in (tmp_path / "stream_restore.md").read_text()


def test_the_parts_of_a_step_are_told_apart(tmp_path: Path):
    stream.main(["profile", *SMALL, "--frames", "4", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "stream_profile.json").read_text())
    parts = found["cross_attention: a decode step"]["milliseconds"]
    assert parts["matrix products and attention"] > 0
    assert parts["planning: windows, positions, masks"] > 0


def test_our_decoding_says_what_transformers_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode, "can_compile", lambda device: False)
    sizes = ("--sizes", "128x2:6", "--vocabulary", "256", "--prompt", "4", "--prefill", "32")
    decode.main([*sizes, "--batches", "1,3", "--rounds", "1", "--results", str(tmp_path)])
    (found,) = json.loads((tmp_path / "decode.json").read_text())["sizes"]
    for batch in found["batches"]:
        assert set(batch["tokens_a_second"]) == {*decode.OURS, decode.THEIRS, *decode.READ.values()}
        assert batch["tokens_as_transformers"][decode.PLAIN] == 1
    assert set(found["products"]) == {"prefill", "vision tower"}


def test_the_gpu_checks_run_at_toy_size_and_make_one_page(tmp_path: Path):
    results = ("--results", str(tmp_path / "gpu"))
    for command in (
        ["ceilings"],
        ["parity"],
        ["stream", "--model", "CASA-Qwen2_5-VL-3B", "--turns", "3"],
        ["stream", "--model", "Helium1-VL-2B", "--turns", "3"],
        ["train", "--variant", "CASA, parallel", "--rounds", "1"],
        ["layer", "--rounds", "1"],
        ["streams", "--rounds", "1", "--history", "8", "--most", "2"],
    ):
        gpu.main([*command, *TOY, *results])
    gpu.main(["render", *results])
    page = (tmp_path / "gpu.md").read_text()
    for name in FUSIONS:
        assert f"| helium: {name} |" in page
        assert f"| qwen: {name} |" in page
    assert page.count("TOY SIZES: no measurement") == 6
    for part in ("| both |", "| CASA-Qwen2_5-VL-3B |", "| Helium1-VL-2B |", "| CASA, parallel |"):
        assert part in page


@pytest.mark.slow
def test_the_engines_overhead_is_measured_beside_rays_own_part(tmp_path: Path):
    dag_overhead.main(["--stages", "2", "--rounds", "1", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "dag_overhead.json").read_text())
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == {
        "ray": 1,
        "jobs": 1,
        "engine": 1,
    }
    assert found["stages_again"] == 2
    assert "engine adds" in (tmp_path / "dag_overhead.md").read_text()
