"""Simulated runs: floors that follow from bytes and rates, what more nodes change, what is refused."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from casa_core.errors import ConfigError
from pipelines.cli.app import app
from pipelines.cost import estimate as estimating
from pipelines.cost.simulate.node import Node, read_node
from pipelines.cost.simulate.plot import draw
from pipelines.cost.simulate.simulation import Simulation, efficiency, over_nodes, simulate
from pipelines.cost.simulate.stages import Resource
from pipelines.cost.workload import PAPER_LISTINGS, Workload, read_rates, workload_to_simulate
from pipelines.recipe import Recipe, load_recipe

GIB = 2**30
SHARE = 0.7
"""The share of a link's rate that is counted on."""
GPUS = 64


@pytest.fixture(autouse=True)
def known_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 GiB a sequence; estimating them takes long, and tests/cost/test_memory.py checks it."""
    monkeypatch.setattr(estimating, "_activations", lambda recipe, placement, shape, sequences: 20 * GIB)


def recipe_of(*overrides: str, name: str = "casa-helium1-before") -> tuple[Recipe, Workload]:
    recipe = load_recipe(name, overrides)
    return recipe, workload_to_simulate(recipe, overrides, name, None)


def run(*overrides: str, nodes: int = 8, **given: Any) -> Simulation:
    """The paper's run; settings of the machines by name."""
    node = read_node(given=[f"{key}={value}" for key, value in given.items()])
    return simulate(*recipe_of(*overrides), node, read_rates(None, ()), nodes)


def casa(*arguments: str, code: int = 0, columns: int = 120) -> str:
    result = CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": str(columns)})
    assert result.exit_code == code, result.output
    return result.output


# floors by hand


def test_gpu_compute_is_the_papers_operations_over_the_rate():
    """187 TFLOP a sequence: tower forward 113, its last four blocks 32, text 26, image keys and values 14."""
    loads = run().stage("train").loads
    assert loads["GPU compute"] == pytest.approx(100_000 * 2 * 187e12 / (989e12 * 0.14), rel=0.06)


def test_the_papers_own_cluster_takes_about_the_papers_three_days():
    assert run().stage("train").expected_s / 86_400 == pytest.approx(3, rel=0.1)


def test_gradients_take_what_a_ring_moves_over_the_slower_link():
    found = run(nic_gbps="100")
    # ZeRO-2 in bf16: a reduction for each of two forwards and a gather, 63/64 of a buffer each.
    sent = 3 * 2 * found.training.counts.trained * 63 / 64
    train = found.stage("train")
    assert train.loads["gradients"] == pytest.approx(100_000 * sent / (100e9 / 8 * SHARE))
    assert train.traffic_bytes == pytest.approx(100_000 * sent * 8)
    alone = run(nodes=1, nic_gbps="100")
    inside = 100_000 * (16 + 1) * 2 * found.training.counts.trained * 7 / 8  # 16 forwards of 8 GPUs
    assert alone.stage("train").loads["gradients"] == pytest.approx(inside / (450e9 * SHARE))
    assert alone.stage("train").traffic_bytes == 0


def test_memory_bandwidth_takes_the_bytes_of_weights_activations_gradients_and_state():
    found = run(gpu_bandwidth_gbs="10")
    counts = found.training.counts
    forward = 2 * 2 * counts.every + 2 * 20 * GIB + 2 * counts.trained
    update = 2 * 12 * counts.trained / GPUS
    train = found.stage("train")
    assert train.loads["GPU memory"] == pytest.approx(100_000 * (2 * forward + update) / 10e9, rel=1e-6)
    assert train.bottleneck == "GPU memory"


@pytest.mark.parametrize(("zero", "weights"), [(1, 2), (2, 3), (3, 2)])
def test_each_zero_stage_has_its_own_traffic(zero: int, weights: int):
    found = run(f"where.train.zero_stage={zero}", nic_gbps="50")
    counts = found.training.counts
    sent = weights * 2 * counts.trained + (zero == 3) * 2 * 2 * 2 * counts.every
    assert found.stage("train").traffic_bytes == pytest.approx(100_000 * sent * 63 / 64 * 8)


def test_clean_takes_the_bytes_over_the_store_where_that_is_slow():
    found = run("where.store=s3://bucket/runs", store_gbps="10")
    clean = found.stage("clean")
    largest = max(clean.read_bytes, clean.written_bytes)
    assert clean.loads["store"] == pytest.approx(largest / (10e9 / 8 * SHARE))
    assert clean.bottleneck == "store"
    assert found.stage("train").read_bytes > found.stage("clean").read_bytes


def test_evaluation_is_the_questions_over_the_measured_answers():
    found = run(answers="0.5", evaluate_start_s="30")
    assert found.stage("evaluate").seconds.value == pytest.approx(30 + 35_455 / (64 * 0.5))


def test_money_is_the_nodes_and_hours():
    found = run(price="10", store_price="0.1")
    assert found.cost == pytest.approx(found.seconds / 3600 * 8 * 10)
    assert found.month_cost == pytest.approx(found.stored_bytes / 1e9 * 0.1)
    assert sum(map(found.stage_cost, found.stages)) == pytest.approx(found.cost)


# what holds a stage up


@pytest.mark.parametrize(
    ("setting", "stage", "bottleneck"),
    [
        ({"mfu": "0.14"}, "train", "GPU compute"),
        ({"nic_gbps": "10"}, "train", "gradients"),
        ({"load_megapixels": "1"}, "train", "loader"),
        ({"folder_gbs": "0.2"}, "train", "disks"),
        ({"store_link_gbps": "0.2"}, "train", "network"),
        ({"cpus": "8"}, "clean", "CPU decode"),
        ({"folder_gbs": "1"}, "clean", "disks"),
        ({"pack_start_s": "1"}, "pack", "packer"),
        ({"evaluate_start_s": "0"}, "evaluate", "GPU compute"),
        ({"gpu_bandwidth_gbs": "1", "evaluate_start_s": "0"}, "evaluate", "GPU memory"),
        ({"save_gbs": "0.00001", "copy_gbs": "0.000001"}, "train", "checkpoints"),
    ],
)
def test_the_slowest_resource_is_named(setting: dict[str, Any], stage: str, bottleneck: Resource):
    found = run(**setting).stage(stage)
    assert found.bottleneck == bottleneck
    assert found.seconds.value >= 0.99 * found.loads[bottleneck]


def test_more_nodes_never_take_longer_and_never_get_more_from_each():
    found = over_nodes(*recipe_of(), read_node(), read_rates(None, ()))
    seconds = [one.seconds for one in found]
    assert seconds == sorted(seconds, reverse=True)
    rates = [efficiency(found[0], one) for one in found]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    assert [one.stage("pack").loads["packer"] for one in found] == [
        found[0].stage("pack").loads["packer"]
    ] * 5


def test_gpus_that_a_batch_cannot_be_shared_by_wait():
    even, uneven = run(nodes=2), run(nodes=3)
    assert uneven.stage("train").loads["GPU compute"] == pytest.approx(
        even.stage("train").loads["GPU compute"] * 6 / 8
    )
    assert "128 cannot be shared evenly by 24 GPUs" in casa("casa-helium1-before", "--nodes", "3").replace(
        "\n", " "
    )


def test_failures_cost_more_the_rarer_the_checkpoints():
    rare, often = (run(f"train.checkpoint_every={n}", mtbf_hours="24").stage("train") for n in (5000, 300))
    assert rare.failures > often.failures > 20
    assert rare.expected_s > 1.2 * often.expected_s
    assert rare.details["best_slowdown"] == pytest.approx(often.details["best_slowdown"])
    assert often.details["slowdown"] > often.details["best_slowdown"]


def test_a_run_that_failures_never_let_end_is_refused():
    with pytest.raises(
        ConfigError, match=r"(?s)would never end.*checkpoint every.*checkpoint_every to about \d+"
    ):
        run(mtbf_hours="0.005")


def test_the_blind_baseline_is_a_stage_of_its_own_without_pictures():
    found = run("evaluate.baselines=[blind]")
    train, blind = found.stage("train"), found.stage("train-blind")
    assert blind.loads["GPU compute"] < 0.5 * train.loads["GPU compute"]
    assert blind.loads["loader"] == 0
    assert found.stage("evaluate").details["questions"] == 2 * 35_455


# machines and corpora


def test_every_number_of_the_default_machine_has_a_source():
    node = read_node()
    assert node.sources.keys() == Node.model_fields.keys() - {"name", "gpu", "answers", "sources"}


def test_a_file_and_single_settings_change_the_machine_and_say_so(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text("name: ours\ngpu: h200\nprice: 20\ncpus: 64\nsources: {price: our contract}\n")
    node = read_node(file, ["cpus=48"])
    assert (node.name, node.gpu, node.gpu_bandwidth_gbs, node.cpus) == ("ours", "H200", 4800, 48)
    assert node.sources["price"] == "our contract"
    assert node.sources["cpus"] == "as given"
    assert "data sheet of H200" in node.sources["gpu_memory_gib"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["price=-1"], r"`price` = -1 cannot work"),
        (["prize=1"], r"(?s)no setting `prize`.*Did you mean `price`"),
        (["price"], r"(?s)no setting of a machine.*KEY=VALUE"),
        (["gpu=X1"], r"(?s)no GPU called 'X1'.*gpu_memory_gib, gpu_tflops"),
        (["mfu=1.5"], r"`mfu` = 1.5"),
        (["cpus=two"], r"`cpus` = 'two'"),
    ],
)
def test_settings_that_no_machine_can_have_are_refused(given: list[str], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        read_node(None, given)


def test_another_gpu_is_described_by_its_numbers():
    given = ["gpu=ours", "gpu_memory_gib=64", "gpu_tflops=200", "gpu_bandwidth_gbs=1000"]
    assert read_node(None, given).as_gpu.bandwidth_gbs == 1000


def test_a_corpus_of_unknown_size_is_named(tmp_path):
    assert "size of vqa, live is not known" in casa("quickstart", code=2).replace("\n", " ")
    listing = ["--listing", str(PAPER_LISTINGS[0])]
    assert "size of live_whisperx is not known" in casa("casa-qwen-livecc", *listing, code=2).replace(
        "\n", " "
    )
    assert "There is no listing" in casa(
        "casa-helium1-before", "--listing", str(tmp_path / "no.json"), code=2
    )
    assert "no machine description" in casa("casa-helium1-before", "--node-file", "no.yaml", code=2)


# the command


def test_the_papers_recipe_has_a_full_table_and_every_assumption_with_its_source():
    output = casa("casa-helium1-before", "--nodes", "8")
    for text in ("clean", "pack", "train", "evaluate", "in all", "GPU compute", "Failures", "by Daly"):
        assert text in output
    rows = re.findall(r"^ +(\d+) +(\d+) .*%", output, re.MULTILINE)
    assert [(int(nodes), int(gpus)) for nodes, gpus in rows] == [(n, 8 * n) for n in (1, 2, 4, 8, 16)]
    assert "data_rates.json, 2026-11-25" in output
    assert "assumed" in output


def test_the_tables_fit_a_terminal_of_80_columns():
    output = casa("casa-helium1-before", columns=80)
    assert "…" not in output
    assert max(map(len, output.splitlines())) <= 80


def test_json_and_a_picture_have_the_same_run(tmp_path):
    plot = tmp_path / "scaling.svg"
    listing = ["--listing", str(PAPER_LISTINGS[0]), "--plot", str(plot), "--json"]
    found = json.loads(casa("casa-qwen-video", "--nodes", "5", *listing))
    assert found["nodes"] == 5
    assert [one["nodes"] for one in found["scaling"]] == [1, 2, 4, 5, 8, 16]
    assert {stage["name"] for stage in found["stages"]} == {"clean", "pack", "train", "evaluate"}
    assert found["usd"] == pytest.approx(sum(stage["usd"] for stage in found["stages"]))
    drawn = "".join(ElementTree.fromstring(plot.read_text()).itertext())
    for name in ("clean", "pack", "train", "evaluate", "GPU compute", "gradients", "loader"):
        assert name in drawn


def test_what_does_not_fit_is_refused_with_what_makes_it_fit():
    output = casa("casa-helium1-before", "--node", "gpu_memory_gib=20", code=2)
    assert "which does not fit" in output.replace("\n", " ")
    assert "GiB per GPU" in output


@pytest.mark.parametrize(
    "name", ["casa-qwen-livecc", "ca-helium1-image-ffn", "helium1-insertion", "helium1-qformer64"]
)
def test_other_recipes_of_the_paper_are_simulated(name: str):
    recipe, work = recipe_of(name=name)
    found = simulate(recipe, work, read_node(), read_rates(None, ()), 8)
    assert found.stage("train").bottleneck == "GPU compute"
    assert 0.5 < found.seconds / 86_400 < 10


def test_one_node_alone_is_drawn_too():
    found = over_nodes(*recipe_of(), read_node(), read_rates(None, ()), counts=[2])
    assert "train" in draw(found, "alone")
