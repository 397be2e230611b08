"""Real DeepSpeed in real worker processes: every ZeRO stage and number of workers is the plain training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.data.store.readers import PackReader
from pipelines.train import metrics
from pipelines.train.sampler import StepSampler
from pipelines.train.settings import TrainJob
from tests.support.core.artifacts import TrainingData, write_training_data
from tests.support.naive.training import Trained, train_plainly
from tests.support.train.jobs import changed, make_job
from tests.support.train.workers import Assignment, finish, start_workers

SPEC: dict[str, Any] = {
    "steps": 6,
    "sequences_per_step": 3,  # uneven for two workers
    "videos_per_step": 2,
    "image_video_ratio": [2, 1],
    "learning_rate": 1.5e-3,
    "warmup_steps": 2,
    "decay_steps": 2,
    "weight_decay": 0.01,
    "clip_grad_norm": 1.0,  # below the first steps' norms, so that clipping is at work
    "checkpoint_every": 3,
}
FACTORS = [0.5, 1, 1, 1, 1, 0.5]
RUNS = [(1, 0), (1, 2), (1, 3), (2, 0), (2, 2), (2, 3)]
"""Workers and ZeRO stage. Pictures have three sizes: workers run the tiny tower's convolutions differently
often."""
UNCLIPPED = {"clip_grad_norm": 0.0}
RESUMED = [(1, 3), (2, 2)]
SETTINGS: dict[str, dict[str, Any]] = {
    "one sequence a forward": {"sequences_per_forward": 1},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "optimizer in host memory": {"offload": "optimizer"},
    "parameters in host memory": {"offload": "parameters", "zero_stage": 3},
}
"""How two workers may run; none of it changes what is computed."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return write_training_data(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def job(data: TrainingData) -> TrainJob:
    return make_job(data, SPEC, seed=2)  # at 1, stem.norms.2.bias, and nothing else, differs by 6e-5


@pytest.fixture(scope="module")
def runs(job: TrainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One group of workers a world size, at the same time; each trains under every stage, then resumes."""
    root = tmp_path_factory.mktemp("runs")

    def at(name: str, **changes: Any) -> TrainJob:
        return changed(job, output=root / name, **changes)

    groups = []
    for workers in (1, 2):
        work = [
            Assignment(at(f"{workers}-zero{stage}", zero_stage=stage))
            for own, stage in RUNS
            if own == workers
        ]
        again, stage = RESUMED[workers - 1]
        resumed = at(f"{again}-zero{stage}-resumed", zero_stage=stage)
        work.append(Assignment(resumed, str(root / f"{again}-zero{stage}")))
        if workers == 1:
            work += [Assignment(at(f"1-zero{n}-unclipped", zero_stage=n, train=UNCLIPPED)) for n in (0, 2)]
        if workers == 2:
            work.append(Assignment(at("2-blind", images=False)))
            work += [Assignment(at(name, **changes)) for name, changes in SETTINGS.items()]
            work.append(Assignment(at("2-zero3-unclipped", zero_stage=3, train=UNCLIPPED)))
            half = {"precision": "bf16"}
            work += [Assignment(at(f"bf16-zero{n}", train=half, zero_stage=n)) for n in (1, 2, 3)]
        groups.append(start_workers(workers, work))
    finish(*groups)
    moved = at("2-zero2-moved", zero_stage=3)
    finish(start_workers(1, [Assignment(moved, str(root / "2-zero2"))]))
    return root


def plainly(job: TrainJob) -> Trained:
    order = StepSampler(
        PackReader(Path(job.pack)).by_kind,
        ratio=(2, 1),
        sequences_per_step={"image": 3, "video": 2},
        seed=job.settings.seed,
    )
    steps = [order[number].sequences for number in range(SPEC["steps"])]
    return train_plainly(job, steps, FACTORS)


@pytest.fixture(scope="module")
def plain(job: TrainJob) -> Trained:
    return plainly(job)


def recorded(run: Path, name: str) -> list[float]:
    return [line[name] for line in metrics.read_lines(run / metrics.FILE)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest relative distance of any weight.

    Except the vision tower's key bias, which shifts all scores of a query alike: softmax ignores it, so its
    gradient is rounding noise, which Adam scales up.
    """
    distances = []
    for name, tensor in ours.items():
        mine, other = tensor, theirs[name]
        if name.endswith("qkv.bias"):
            width = len(mine) // 3
            mine, other = (torch.cat([bias[:width], bias[2 * width :]]) for bias in (mine, other))
        distances.append(float((mine - other).norm() / other.norm()))
    return max(distances)


@pytest.mark.parametrize(("workers", "stage"), RUNS)
def test_losses_and_weights_are_those_of_plain_training(plain: Trained, runs: Path, workers: int, stage: int):
    run = runs / f"{workers}-zero{stage}"
    assert recorded(run, "loss") == pytest.approx(plain.losses, rel=1e-5)
    assert recorded(run, "grad_norm") == pytest.approx(plain.grad_norms, rel=1e-5)
    assert recorded(run, "learning_rate") == pytest.approx([1.5e-3 * factor for factor in FACTORS])
    assert furthest(weights(run), plain.weights) < 1e-5


@pytest.mark.parametrize("name", ["1-zero0", "1-zero2", "2-zero3"])
def test_without_a_limit_no_gradient_is_scaled(job: TrainJob, plain: Trained, runs: Path, name: str):
    free = plainly(changed(job, output=Path(job.output), train=UNCLIPPED))
    run = runs / f"{name}-unclipped"
    assert recorded(run, "loss") == pytest.approx(free.losses, rel=1e-5)
    assert recorded(run, "grad_norm") == pytest.approx(free.grad_norms, rel=1e-5)
    assert free.losses[1:] != pytest.approx(plain.losses[1:], rel=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_where_do_not_change_what_is_trained(plain: Trained, runs: Path, name: str):
    assert recorded(runs / name, "loss") == pytest.approx(plain.losses, rel=1e-5)
    assert recorded(runs / name, "grad_norm") == pytest.approx(plain.grad_norms, rel=1e-5)
    assert furthest(weights(runs / name), plain.weights) < 1e-5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_computes_in_half_precision_and_learns_as_much(plain: Trained, runs: Path, stage: int):
    losses = recorded(runs / f"bf16-zero{stage}", "loss")
    assert losses == pytest.approx(plain.losses, rel=0.02)
    assert losses != pytest.approx(plain.losses, rel=1e-5)
    assert {tensor.dtype for tensor in weights(runs / f"bf16-zero{stage}").values()} == {torch.bfloat16}


def test_the_plain_training_learns_and_is_clipped(plain: Trained):
    assert plain.losses[-1] < plain.losses[0] - 0.5
    assert max(plain.grad_norms) > SPEC["clip_grad_norm"]


def test_a_step_counts_the_tokens_of_all_workers_and_names_its_kind(runs: Path):
    for name in ("text_tokens", "image_tokens", "trained_tokens", "kind", "step"):
        assert recorded(runs / "1-zero2", name) == recorded(runs / "2-zero2", name)
    assert recorded(runs / "1-zero2", "kind") == ["image", "image", "video"] * 2
    assert recorded(runs / "1-zero2", "step") == [1, 2, 3, 4, 5, 6]
    one, two = (
        [own * seconds * workers for own, seconds in zip(*of_each, strict=True)]
        for workers in (1, 2)
        for of_each in [[recorded(runs / f"{workers}-zero2", name) for name in ("tflops", "seconds")]]
    )
    assert one == pytest.approx(two, rel=1e-9), "the model's operations are those of the step"
    assert min(one) > 0


@pytest.mark.parametrize(("workers", "stage"), RESUMED)
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint_to_the_same_end(
    runs: Path, workers: int, stage: int
):
    whole, resumed = runs / f"{workers}-zero{stage}", runs / f"{workers}-zero{stage}-resumed"
    assert recorded(resumed, "step") == [1, 2, 3, 4, 5, 6]
    assert recorded(resumed, "loss") == pytest.approx(recorded(whole, "loss"), rel=1e-6)
    assert furthest(weights(resumed), weights(whole)) < 1e-6
    trained_again = [
        mine != theirs
        for mine, theirs in zip(recorded(whole, "seconds"), recorded(resumed, "seconds"), strict=True)
    ]
    assert trained_again == [False, False, False, True, True, True]


def test_a_run_of_two_workers_goes_on_with_one_and_another_stage(runs: Path):
    assert recorded(runs / "2-zero2-moved", "loss") == pytest.approx(
        recorded(runs / "2-zero2", "loss"), rel=1e-5
    )


def test_the_blind_baseline_trains_on_text_and_leaves_alone_what_sees(job: TrainJob, runs: Path):
    from casa_core.processing.processor import CasaProcessor
    from casa_core.weights.checkpoint import load_checkpoint
    from pipelines.train.build import build_model

    expected = plainly(changed(job, output="", images=False))
    run = runs / "2-blind"
    assert recorded(run, "loss") == pytest.approx(expected.losses, rel=1e-5)
    assert set(recorded(run, "image_tokens")) == {0}
    model, processor = load_checkpoint(run / "model")
    assert model.config.images_withheld
    assert isinstance(processor, CasaProcessor)
    settings = job.settings
    built = build_model(settings.model, processor, seed=settings.seed, images=False)
    before = dict(built.named_parameters())
    for name, parameter in model.named_parameters():
        sees = name.startswith("vision_tower.") or ".fusion." in name
        assert torch.equal(parameter, before[name]) == sees, name
