"""The train stage: Ray Train around :func:`pipelines.train.worker.train`.

In: a pack artifact and the clean artifacts it refers to. Out: ``model/`` (a model folder), ``metrics.jsonl``,
``timings.jsonl`` and, where the model was scored while it trained, ``scores.json``. Checkpoints lie beside
the artifacts, so that later attempts resume from them, and those that are kept can be exported afterwards.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from casa_core import errors
from casa_core.errors import CasaError, ConfigError
from pipelines.dag.context import StageContext
from pipelines.recipe.where import Device, TrainWorkers
from pipelines.storage.atomic import write_whole
from pipelines.storage.errors import disk_error
from pipelines.storage.growing import finish
from pipelines.storage.transfer import remove_tree
from pipelines.storage.uri import Folder, filesystem_for, open_folder, recipe_folder
from pipelines.train import metrics
from pipelines.train.settings import SNAPSHOTS, TrainJob, read_train_settings

ERROR = "error.json"
RAY_TRAIN = "ray_train"
"""Folder beside the checkpoints for Ray Train's own files, which all nodes must see."""
POLL_SECONDS = 0.5
RECENT_STEPS = 50
ELASTIC_SECONDS = float(os.environ.get("CASA_ELASTIC_SECONDS", "60"))
"""Seconds between two looks for further workers, where their number may vary; adding one costs the steps
since the last checkpoint."""


def run_stage(context: StageContext) -> dict[str, Any]:
    """Train the recipe's model; returns the summary of the run."""
    if context.placement["ray"]["address"] == "local":
        # Nobody takes this machine back, and to watch for it is a process of its own.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    job = _job(context)
    environment = worker_environment(job.placement.scoring_gpus > 0)
    scoring = nullcontext() if job.settings.evaluate is None else _scoring(job, environment)
    with _ProgressFromMetrics(context, job.settings.train.steps), scoring:
        _fit(job, name=context.name)
    remove_tree(open_folder(job.checkpoints) / RAY_TRAIN)
    remove_tree(open_folder(job.checkpoints) / SNAPSHOTS)
    finish(context.output / metrics.FILE)
    metrics.set_times_apart(context.output)
    return _summary(context.output)


def _scoring(job: TrainJob, environment: dict[str, str]) -> AbstractContextManager[object]:
    from pipelines.train.scoring import Scoring

    return Scoring(job, environment)


def _job(context: StageContext) -> TrainJob:
    settings, placement = read_train_settings(context.settings), context.placement
    inputs = {role: str(folder) for role, folder in context.inputs.items()}
    weights, earlier = settings.model.weights, inputs.pop("start", None)
    named = None if weights is None else weights.checkpoint
    return TrainJob(
        settings=settings,
        placement=TrainWorkers.model_validate(placement["train"]),
        pack=inputs.pop("pack"),
        sources=inputs,
        start=named if earlier is None else str(open_folder(earlier) / "model"),
        start_digest="" if earlier is None else context.content_digest("start"),
        output=str(context.output),
        checkpoints=str(checkpoint_root(placement, context.fingerprint)),
        run_name=placement["recipe"] + ("" if context.name == "train" else f"-{context.name}"),
        run_key=context.fingerprint,
        track_folder=str(open_folder(placement["store"]) / "tracking"),
    )


def checkpoint_root(placement: dict[str, Any], fingerprint: str) -> Folder:
    """Folder of a train stage's checkpoints, during the run and after it.

    Args:
        placement: The stage's, with the store's absolute path or URI.
        fingerprint: The stage's; each has a folder of its own.
    """
    named = placement["train"]["checkpoints"]
    root = recipe_folder(named, placement) if named else open_folder(placement["store"]) / "checkpoints"
    return root / fingerprint


def _fit(job: TrainJob, name: str) -> None:
    """Run the workers under Ray Train. A lost worker or node is replaced, and the group resumes from the
    newest checkpoint; where the number of workers may vary, with as many as the cluster has."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from infra.torch_rendezvous import BoundTorchConfig

    if not ray.is_initialized():
        ray.init()
    placement = job.placement
    fewest, most = placement.fewest, placement.most
    filesystem, folder = filesystem_for(open_folder(job.checkpoints) / RAY_TRAIN)
    gpus = uses_gpus(placement.device, ray.cluster_resources().get("GPU", 0), fewest)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=BoundTorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=gpus,
            resources_per_worker={"CPU": placement.cpus_per_worker},
            elastic_resize_monitor_interval_s=ELASTIC_SECONDS,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=placement.max_failures),
            worker_runtime_env={"env_vars": worker_environment(gpus)},
        ),
    )
    reported = open_folder(job.output) / ERROR
    reported.unlink(missing_ok=True)
    try:
        trainer.fit()
    finally:
        _raise_reported(reported)


def uses_gpus(device: Device, there: float, fewest: int) -> bool:
    """Whether training runs on GPUs.

    Args:
        device: ``where.train.device``.
        there: GPUs of the cluster.
        fewest: Workers needed to start, one GPU per worker.

    Raises:
        ConfigError: If the cluster has GPUs, but too few: a run for GPUs must not start silently on CPUs.
    """
    if device != "auto":
        return device == "gpu"
    if 0 < there < fewest:
        raise ConfigError(
            f"Training asks for {fewest} workers with one GPU each, and the cluster has {there:.0f}.",
            "A node is missing, or the recipe is meant for another cluster.",
            "Wait for the node; or set where.train.workers to fewer or to a range ([2, 8]), or "
            "where.train.device to gpu, to wait until the cluster has grown, or to cpu.",
        )
    return there > 0


def _work(config: dict[str, Any]) -> None:
    """Runs in each training worker.

    An error of the run itself would only recur: the first worker that has one writes it to a file, and the
    workers that Ray starts in their place find the file and end.
    """
    import ray.train

    # Not at the top: it takes seconds, which the job and Ray Train's controller then wait for as well.
    from pipelines.train.worker import train

    job, world = config["job"], ray.train.get_context()
    reported = open_folder(job.output) / ERROR
    if reported.is_file():
        return
    try:
        train(job, rank=world.get_world_rank(), world_size=world.get_world_size())
    except Exception as error:
        said = error if isinstance(error, CasaError) else disk_error(error)
        if said is not None:
            write_whole(reported, json.dumps([type(said).__name__, *said.args]))
        raise


def _raise_reported(reported: Folder) -> None:
    """Raise the error that a worker wrote to the file, with its own type."""
    if reported.is_file():
        kind, *args = json.loads(reported.read_text())
        reported.unlink()
        raise getattr(errors, kind)(*args) from None


def worker_environment(gpus: bool) -> dict[str, str]:
    """Environment variables of a training worker's process.

    A run without GPUs sees none, even on a node that has some. Its C library keeps freed memory: otherwise
    each step's gradients and buckets go back to the system and cost a page fault per 4 KiB in the next.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    if gpus:
        return environment
    # A worker's threads sleep while they wait for each other. Those that spin take the cores from other
    # workers: two threads beside a worker of one, on two cores, halve the speed of both.
    environment["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
    return environment | keep_memory | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class _ProgressFromMetrics:
    """Context manager: reports the steps that appear in ``metrics.jsonl`` while its block runs."""

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
        follower = metrics.MetricsFollower(self._context.output / metrics.FILE)
        recent: deque[dict[str, Any]] = deque(maxlen=RECENT_STEPS)
        while True:
            over = self._over.wait(POLL_SECONDS)
            # Those of an attempt that was killed at its very end have their times apart.
            if new := [step for step in follower.poll(now=over) if "seconds" in step]:
                recent.extend(new)
                message = metrics.progress_message(recent, self._steps)
                self._context.progress(recent[-1]["step"], self._steps, message)
            if over:
                return


def _summary(output: Folder) -> dict[str, Any]:
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
