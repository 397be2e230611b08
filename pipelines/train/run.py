"""The train stage: Ray Train around :func:`pipelines.train.worker.train`.

In: a pack artifact and the clean artifacts it refers to. Out: ``model/`` (a checkpoint folder),
``metrics.jsonl``. Checkpoints lie beside the artifacts, so that any later attempt goes on from them, and any
of those that are kept can be exported after the end.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from casa_core import errors
from casa_core.errors import CasaError, ConfigError
from pipelines.dag.context import StageContext
from pipelines.recipe.where import Device
from pipelines.storage.atomic import write_whole
from pipelines.storage.uri import Folder, recipe_folder
from pipelines.train import metrics
from pipelines.train.worker import TrainJob, train

ERROR = "error.json"
POLL_SECONDS = 0.5
RECENT_STEPS = 50
ELASTIC_SECONDS = float(os.environ.get("CASA_ELASTIC_SECONDS", "60"))
"""How often a run of a variable number of workers looks whether the cluster has more; taking one in costs the
steps since the last checkpoint."""


def run_stage(context: StageContext) -> dict[str, Any]:
    """Train the recipe's model; returns the summary of the run."""
    job = _job(context)
    with _ProgressFromMetrics(context, job.train["steps"]):
        _fit(job, context.placement["train"], name=context.name)
    shutil.rmtree(context.local_output / "ray_train", ignore_errors=True)
    return _summary(context.local_output)


def _job(context: StageContext) -> TrainJob:
    placement = context.placement["train"]
    inputs = {role: str(folder) for role, folder in context.inputs.items()}
    # Weights that lie in a folder here count by content; where that folder is stands beside.
    weights = {name: context.settings.get(name, value) for name, value in context.settings["weights"].items()}
    earlier = inputs.pop("start", None)
    return TrainJob(
        model={**context.settings["model"], "weights": weights},
        train=context.settings["train"],
        seed=context.settings["seed"],
        images=context.settings["images"],
        pack=inputs.pop("pack"),
        sources=inputs,
        start=weights.get("checkpoint") if earlier is None else str(Path(earlier) / "model"),
        output=str(context.local_output),
        checkpoints=str(checkpoint_root(context.placement, context.fingerprint)),
        keep=placement["keep"],
        keep_best=placement["keep_best"],
        zero_stage=placement["zero_stage"],
        offload=placement["offload"],
        gradient_checkpointing=placement["gradient_checkpointing"],
        sequences_per_forward=placement["sequences_per_forward"],
        threads=placement["cpus_per_worker"],
        loader_threads=placement["loader_threads"],
        steps_ahead=placement["steps_ahead"],
        track=tuple(placement["track"]),
        run_name=context.placement["recipe"] + ("" if context.name == "train" else f"-{context.name}"),
        run_key=context.fingerprint,
        track_folder=str(Path(context.placement["store"]) / "tracking"),
    )


def checkpoint_root(where: dict[str, Any], fingerprint: str) -> Folder:
    """Where a train stage's checkpoints lie, during the run and after it.

    Args:
        where: The recipe's ``where`` section.
        fingerprint: Of the stage: another recipe has another folder.
    """
    named = where["train"]["checkpoints"]
    root = recipe_folder(named, where) if named else Path(where["store"]) / "checkpoints"
    return root / fingerprint


def _fit(job: TrainJob, placement: dict[str, Any], name: str) -> None:
    """Run the workers under Ray Train; a worker or node that is lost is replaced, and the group goes on from
    the newest checkpoint, with as many workers as there are where their number may vary."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from infra.torch_rendezvous import BoundTorchConfig

    if not ray.is_initialized():
        ray.init()
    workers = placement["workers"]
    fewest, most = (workers, workers) if isinstance(workers, int) else workers
    gpus = uses_gpus(placement["device"], ray.cluster_resources().get("GPU", 0), fewest)
    trainer = TorchTrainer(
        _work,
        train_loop_config=asdict(job),
        torch_config=BoundTorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=gpus,
            resources_per_worker={"CPU": placement["cpus_per_worker"]},
            elastic_resize_monitor_interval_s=ELASTIC_SECONDS,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(Path(job.output) / "ray_train"),
            failure_config=FailureConfig(max_failures=placement["max_failures"]),
            worker_runtime_env={"env_vars": worker_environment(gpus)},
        ),
    )
    reported = Path(job.output) / ERROR
    reported.unlink(missing_ok=True)
    try:
        trainer.fit()
    finally:
        _raise_reported(reported)


def uses_gpus(device: Device, there: float, fewest: int) -> bool:
    """Whether training takes place on GPUs.

    Args:
        device: As ``where.train.device`` says.
        there: GPUs of the cluster.
        fewest: Workers it takes to start, a GPU each.

    Raises:
        ConfigError: If there are some, but too few: a run for GPUs must not start on CPUs in silence.
    """
    if device != "auto":
        return device == "gpu"
    if 0 < there < fewest:
        raise ConfigError(
            f"training asks for {fewest} workers, a GPU each, and the cluster has {there:.0f}",
            "a node is missing, or the recipe is meant for another cluster",
            "wait for the node; or set where.train.workers to fewer or to a range ([2, 8]), or "
            "where.train.device to gpu, to wait until a cluster has grown, or to cpu",
        )
    return there > 0


def _work(config: dict[str, Any]) -> None:
    """Runs in each training worker.

    An error of the run itself would only come again: the first worker to meet one writes it down, and the
    workers that Ray starts in place of these find it and end.
    """
    import ray.train

    job, world = TrainJob(**config), ray.train.get_context()
    reported = Path(job.output) / ERROR
    if reported.is_file():
        return
    try:
        train(job, rank=world.get_world_rank(), world_size=world.get_world_size())
    except CasaError as error:
        write_whole(reported, json.dumps([type(error).__name__, *error.args]), durable=True)
        raise


def _raise_reported(reported: Path) -> None:
    """Raise the error that a worker wrote down, as itself."""
    if reported.is_file():
        kind, *args = json.loads(reported.read_text())
        reported.unlink()
        raise getattr(errors, kind)(*args) from None


def worker_environment(gpus: bool) -> dict[str, str]:
    """Environment variables of a training worker's process.

    Without GPUs, none is seen, also on a node that has some. And the C library would give the memory of each
    step's gradients and buckets back to the system and ask for it again, a page fault per 4 KiB. It is told
    to keep it.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    if gpus:
        return environment
    keep_memory = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
    return environment | keep_memory | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class _ProgressFromMetrics:
    """Reports the steps that appear in ``metrics.jsonl`` while a block runs."""

    def __init__(self, context: StageContext, steps: int) -> None:
        self._context, self._steps = context, steps
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="train-progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        follower = metrics.MetricsFollower(self._context.local_output / metrics.FILE)
        recent: deque[dict[str, Any]] = deque(maxlen=RECENT_STEPS)
        while True:
            over = self._over.wait(POLL_SECONDS)
            if new := follower.poll():
                recent.extend(new)
                message = metrics.progress_message(recent, self._steps)
                self._context.progress(recent[-1]["step"], self._steps, message)
            if over:
                return


def _summary(output: Path) -> dict[str, Any]:
    lines = metrics.read_lines(output / metrics.FILE)
    seconds = sum(line["seconds"] for line in lines)
    last = {
        kind: [line["loss"] for line in lines if line["kind"] == kind][-20:] for kind in ("image", "video")
    }
    manifest = json.loads((output / "model" / "manifest.json").read_text())
    losses = {kind: sum(values) / len(values) for kind, values in last.items() if values}
    parts = [f"{len(lines)} steps", *(f"{kind} loss {loss:.3f}" for kind, loss in losses.items())]
    return {
        "headline": " · ".join([*parts, f"{manifest['parameters'] / 1e6:.2f} M parameters"]),
        "steps": len(lines),
        "parameters": manifest["parameters"],
        **{f"final_{kind}_loss": round(loss, 4) for kind, loss in losses.items()},
        "text_tokens_per_second": round(sum(line["text_tokens"] for line in lines) / max(seconds, 1e-9), 1),
        "loader_wait_share": round(sum(line["loader_wait_s"] for line in lines) / max(seconds, 1e-9), 4),
    }
