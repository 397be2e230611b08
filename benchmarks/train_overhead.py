"""Measures a training step under Ray Train and DeepSpeed against a plain torch loop on the same batches.

python -m benchmarks.train_overhead [--rounds 6 --workers 1,2 --stages 2,3 --text 512,2048]

Both run in turns in the same Ray workers, on models of the same weights. The plain loop is forward, backward,
clipping and fused AdamW; with several workers, in torch's DistributedDataParallel, which adds up gradients at
the last backward of a step. Where ZeRO-3 shards the weights, a third loop has them sharded by torch itself
(``fully_shard``): what remains between these two is overhead, the rest is the price of sharding. Losses must
agree. A round takes a step of each and gives a ratio of each pair: a slower machine slows all.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.measure import interleaved, publish, read_options, table
from casa_core.backbones.tiny import tiny_config
from casa_core.config import FusionConfig, TinyVisionConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from pipelines.cost.synthetic import SequenceShape, random_batch
from pipelines.recipe.model import Train
from pipelines.recipe.where import TrainWorkers
from pipelines.train import zero
from pipelines.train.loop import take_step
from pipelines.train.loss_guard import LossGuard
from pipelines.train.model_config import training_stage

TRAIN = Train(steps=1, sequences_per_step=1, learning_rate=1e-4)
STAGE = training_stage(TRAIN)
VOCABULARY = 2048
AGREE = 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        rounds=6,
        workers="1,2",
        stages=("2,3", "ZeRO"),
        hidden=512,
        layers=6,
        text=("512,2048", "text tokens of a forward; the paper's are 2,048"),
        forwards=(2, "accumulated in a step"),
    )
    runs = [
        measure(int(workers), int(stage), int(text), options)
        for text in options.text.split(",")
        for workers in options.workers.split(",")
        for stage in options.stages.split(",")
    ]
    title = "A step under Ray and DeepSpeed beside a plain loop"
    publish("train_overhead", title, options, {"runs": runs}, report(runs))


def measure(workers: int, zero_stage: int, text: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one group of Ray workers; returns rank 0's results."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from infra.torch_rendezvous import BoundTorchConfig
    from pipelines.train.run import worker_environment

    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="casa-") as folder:
        found = Path(folder) / "found.json"
        settings = {"workers": workers, "zero_stage": zero_stage, "text": text, "found": str(found)}
        settings |= {name: getattr(options, name) for name in ("rounds", "hidden", "layers", "forwards")}
        TorchTrainer(
            in_worker,
            train_loop_config=settings,
            torch_config=BoundTorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name="overhead",
                storage_path=folder,
                worker_runtime_env={"env_vars": worker_environment(gpus=False) | {"OMP_NUM_THREADS": "1"}},
            ),
        ).fit()
        return json.loads(found.read_text())


def in_worker(settings: dict[str, Any]) -> None:
    """Take steps of every loop, in turns; rank 0 writes the results."""
    import ray.train

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = CasaForConditionalGeneration(model_config(settings)).train()
    shape = SequenceShape(settings["text"], 8, 4, 3 * 8 * 8, 8)
    generator = torch.Generator().manual_seed(rank)
    batches = [random_batch(shape, 1, VOCABULARY, generator) for _ in range(settings["forwards"])]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    loops: dict[str, Any] = {"plain": PlainLoop(copy.deepcopy(model), batches, workers)}
    if workers > 1 and settings["zero_stage"] == 3:
        loops["sharded"] = ShardedLoop(copy.deepcopy(model), batches, workers)
    loops["ours"] = OurLoop(model, batches, workers, settings["zero_stage"])
    losses: dict[str, list[float]] = {name: [] for name in loops}
    steps = {name: lambda name=name: losses[name].append(loops[name].step()) for name in loops}
    taken = {name: each.wall for name, each in interleaved(steps, settings["rounds"]).items()}
    if rank == 0:
        result = {name: settings[name] for name in ("workers", "zero_stage", "text", "forwards")}
        result |= {"parameters": parameters, "losses_apart": losses_apart(losses)}
        result |= {name: statistics.median(seconds) for name, seconds in taken.items()}
        result["ratios"] = {
            name: sorted(b / a for a, b in zip(taken["ours"], taken[name], strict=True))
            for name in loops.keys() - {"ours"}
        }
        Path(settings["found"]).write_text(json.dumps(result))


def losses_apart(losses: dict[str, list[float]]) -> float:
    """The largest difference of any loop's loss from ours, at any step."""
    pairs = [pair for own in losses.values() for pair in zip(losses["ours"], own, strict=True)]
    apart = max(abs(a - b) for a, b in pairs)
    assert apart < AGREE, f"the losses differ by {apart}: this is not the same training"
    return apart


class OurLoop:
    """The step that :class:`pipelines.train.loop.TrainLoop` takes."""

    def __init__(self, model: Any, batches: list[Any], workers: int, zero_stage: int) -> None:
        groups = parameter_groups(model, STAGE)
        self.engine = zero.wrap(model, groups, TRAIN, TrainWorkers(zero_stage=zero_stage), workers)
        self.batches, self.workers, self.guard = batches, workers, LossGuard(TRAIN.spike_nats, workers)

    def step(self) -> float:
        """Take a step; returns its loss."""
        taken = take_step(
            self.engine,
            self.batches,
            number=1,
            kind="image",
            factor=1.0,
            guard=self.guard,
            world_size=self.workers,
            sources=("random",),
            stage=STAGE,
        )
        return taken.totals.loss


class PlainLoop:
    """Forward, backward, clip, AdamW."""

    def __init__(self, model: Any, batches: list[Any], workers: int) -> None:
        self.model, self.batches, self.workers = self.distributed(model, workers), batches, workers
        groups = parameter_groups(model, STAGE)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.trained = sum(micro.batch.trained_tokens for micro in batches)  # equal on every worker

    def distributed(self, model: Any, workers: int) -> Any:
        return torch.nn.parallel.DistributedDataParallel(model) if workers > 1 else model

    def kept_apart(self) -> AbstractContextManager[Any]:
        """Context in which backwards do not add gradients over workers: all but a step's last."""
        return self.model.no_sync() if self.workers > 1 else nullcontext()

    def step(self) -> float:
        """Take a step; returns its loss."""
        loss = torch.zeros(())
        for number, micro in enumerate(self.batches, start=1):
            with nullcontext() if number == len(self.batches) else self.kept_apart():
                part = self.model(**micro.batch.inputs()).loss_sum / self.trained
                part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.workers > 1:
            torch.distributed.all_reduce(loss)
        return float(loss) / self.workers


class ShardedLoop(PlainLoop):
    """The same with weights, gradients and the optimizer's state sharded by torch, decoder layer by layer."""

    def distributed(self, model: Any, workers: int) -> Any:
        mesh = init_device_mesh("cpu", (workers,))
        for layer in model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def kept_apart(self) -> AbstractContextManager[Any]:
        return nullcontext()  # whole gradients would lie on every worker


def model_config(settings: dict[str, Any]) -> Any:
    return tiny_config(
        vocab_size=VOCABULARY,
        pad_token_id=0,
        eos_token_id=1,
        fusion=FusionConfig(kind="casa", placement="before"),
        hidden_size=settings["hidden"],
        num_hidden_layers=settings["layers"],
        vision=TinyVisionConfig(),
    )


def report(runs: Sequence[dict[str, Any]]) -> str:
    """A table with one row per group of workers."""
    rows = [
        [
            str(run["workers"]),
            str(run["zero_stage"]),
            f"{run['forwards']} x {run['text']:,}",
            f"{run['parameters'] / 1e6:.1f} M",
            *(f"{run[name]:.2f}" if name in run else "" for name in ("plain", "sharded", "ours")),
            *(_ratio(run["ratios"].get(name)) for name in ("plain", "sharded")),
            f"{run['losses_apart']:.0e}",
        ]
        for run in runs
    ]
    head = ["workers", "ZeRO", "text tokens", "parameters", "plain, s", "sharded by torch, s", "ours, s"]
    note = (
        "Medians, of seconds of the first worker's steps and of the rounds' ratios, with the least and the "
        "greatest of these; 1 is no overhead."
    )
    return table([*head, "plain / ours", "sharded / ours", "losses apart"], rows) + f"\n{note}\n"


def _ratio(ratios: Sequence[float] | None) -> str:
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else ""


if __name__ == "__main__":
    main()
