"""Simulated training: a step's load on GPUs, links, loader and store, and the stage that its steps make.

A step lasts as long as the slowest of what runs side by side: the GPUs with the gradient traffic that their
backward waits for, the loader's threads, and reading from the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

from casa_core.config import CasaConfig
from casa_core.errors import ConfigError
from casa_core.flops import step_flops
from pipelines.cost.estimate import MFU, MFU_RANGE, TrainEstimate, full_config
from pipelines.cost.forecast import NETWORK_SHARE, TEXT_TOKEN_BYTES, Estimate, Forecast
from pipelines.cost.simulate.failures import (
    daly_interval,
    expected_seconds,
    more_failures_than,
    young_interval,
)
from pipelines.cost.simulate.stages import Machines, Resource, StageCost
from pipelines.cost.synthetic import SequenceShape, forwards_of, shapes_of
from pipelines.recipe.model import Recipe
from pipelines.text_format import duration
from pipelines.train.model_config import training_stage

_RECOMPUTED = 4 / 3
"""Operations with gradient checkpointing over those without: one more forward beside three passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """Seconds that a step needs of each resource alone; of a worker, those of the one with most sequences.

    Attributes:
        compute, memory: The GPU's operations; its memory's traffic.
        traffic: Gradients, and under ZeRO weights, between GPUs.
        hidden: Whether that runs beside the operations (ZeRO-3) or after them.
        loader: Reading and decoding on the worker's threads.
        store: Pictures and texts of all workers from the store.
        traffic_bytes, read_bytes: Between machines, and from the store, all workers together.
    """

    compute: float
    memory: float
    traffic: float
    hidden: bool
    loader: float
    store: float
    traffic_bytes: float
    read_bytes: float

    @property
    def seconds(self) -> float:
        """Duration of the step."""
        gpu = max(self.compute, self.memory)
        gpu = max(gpu, self.traffic) if self.hidden else gpu + self.traffic
        return max(gpu, self.loader, self.store)


@dataclass(frozen=True)
class Training:
    """A recipe's training on some machines.

    Attributes:
        recipe: The run.
        machines: The cluster, with one worker on each GPU.
        data: What is trained on.
        found: The estimate of its memory and operations on so many workers.
        images: Whether pictures are seen; not so by the blind baseline.
    """

    recipe: Recipe
    machines: Machines
    data: Forecast
    found: TrainEstimate
    images: bool = True

    @cached_property
    def _config(self) -> CasaConfig:
        return full_config(self.recipe.model)

    @cached_property
    def steps(self) -> dict[str, tuple[float, StepLoad]]:
        """Kind of step → its share of all steps, and its load."""
        train = self.recipe.train
        ratio = dict(zip(train.batch_sizes, train.image_video_ratio, strict=True))
        return {
            kind: (ratio[kind] / sum(train.image_video_ratio), self._load(kind, shape))
            for kind, shape in shapes_of(self.recipe).items()
        }

    @property
    def step_s(self) -> float:
        """Mean duration of a step without checkpoints, s."""
        return sum(share * load.seconds for share, load in self.steps.values())

    @property
    def save_s(self) -> tuple[float, float]:
        """How long a checkpoint stops a worker, and from its copy until it is whole, s."""
        node, size = self.machines.node, self.found.checkpoint_bytes
        own = size / self.machines.gpus / 1e9
        bandwidth = self.machines.data_cluster(self.recipe).bytes_per_second
        lag = max(own / node.save_gbs, size / bandwidth)
        # The next copy waits until the checkpoint before it is written.
        waits = max(0.0, lag - self.interval_s)
        return own / node.copy_gbs + waits, lag

    @property
    def interval_s(self) -> float:
        """Work between two checkpoints, s."""
        train = self.recipe.train
        return min(train.checkpoint_every, train.steps) * self.step_s

    def best_intervals(self) -> dict[str, float]:
        """Work between checkpoints by Young's and by Daly's equation, s; no shorter than a save lasts."""
        (stall, lag), mtbf = self.save_s, self.machines.mtbf_s
        found = {"young": young_interval(stall, mtbf), "daly": daly_interval(stall, mtbf)}
        return {name: max(interval, lag, self.step_s) for name, interval in found.items()}

    def _expected_s(self, interval_s: float) -> float:
        """Expected duration of all steps with a checkpoint after so much work, and with failures, s.

        Raises:
            ConfigError: If failures come so often that it would never end.
        """
        stall, lag = self.save_s
        restart, mtbf = self.machines.node.restart_s, self.machines.mtbf_s
        work = self.recipe.train.steps * self.step_s
        expected = expected_seconds(work, interval_s, stall, restart, mtbf, min(lag, interval_s))
        if expected == inf:
            best = max(self.best_intervals()["daly"] / self.step_s, 1)
            raise ConfigError(
                f"Training on {self.machines.nodes} nodes would never end.",
                f"One of them fails every {duration(mtbf)}, and there is a checkpoint every "
                f"{duration(interval_s)}.",
                f"Set train.checkpoint_every to about {best:.0f}, or give machines of a longer mtbf_hours.",
            )
        return expected

    def stage(self, name: str) -> StageCost:
        """The stage, with failures as :mod:`pipelines.cost.simulate.failures` counts them."""
        node, train, steps = self.machines.node, self.recipe.train, self.recipe.train.steps
        stall, lag = self.save_s
        saves = steps / train.checkpoint_every
        weights = self.found.counts.every * (2 if train.precision == "bf16" else 4)
        kept = self.recipe.where.train.keep + bool(train.evaluate_every) * self.recipe.where.train.keep_best
        work = steps * self.step_s
        plain = work + saves * stall
        expected, best = self._expected_s(self.interval_s), self.best_intervals()
        failures = (expected + node.train_start_s) / self.machines.mtbf_s
        low, high = self._range()
        written = saves * self.found.checkpoint_bytes + weights
        loads = self._loads()
        loads |= {"checkpoints": saves * stall, "start": node.train_start_s}
        return StageCost(
            name=name,
            loads=loads,
            seconds=Estimate(value=plain, low=low + saves * stall, high=high + saves * stall)
            + Estimate.exactly(node.train_start_s),
            expected_s=expected + node.train_start_s,
            failures=failures,
            read_bytes=steps * self._mean("read_bytes") + weights * self.machines.nodes,
            written_bytes=written,
            traffic_bytes=steps * self._mean("traffic_bytes"),
            stored_bytes=kept * self.found.checkpoint_bytes + weights,
            details={
                "step_s": self.step_s,
                "checkpoint_stall_s": stall,
                "checkpoint_lag_s": lag,
                "checkpoint_interval_s": self.interval_s,
                "lost_work_s_per_failure": self.interval_s / 2 + lag,
                "slowdown": expected / work - 1,
                "best_slowdown": self._expected_s(best["daly"]) / work - 1,
                "given_up": more_failures_than(self.recipe.where.train.max_failures, failures),
                **{f"{name}_steps": interval / self.step_s for name, interval in best.items()},
            },
        )

    def _range(self) -> tuple[float, float]:
        """Seconds of all steps at the ends of the MFU's range, where the MFU is the default."""
        if self.machines.node.mfu != MFU:
            only = self.recipe.train.steps * self.step_s
            return only, only
        ends = []
        for mfu in reversed(MFU_RANGE):
            node = self.machines.node.model_copy(update={"mfu": mfu})
            other = replace(self, machines=replace(self.machines, node=node))
            ends.append(self.recipe.train.steps * other.step_s)
        return ends[0], ends[1]

    def _mean(self, measure: str) -> float:
        return sum(share * getattr(load, measure) for share, load in self.steps.values())

    def _loads(self) -> dict[Resource, float]:
        steps = self.recipe.train.steps
        return {
            "GPU compute": steps * self._mean("compute"),
            "GPU memory": steps * self._mean("memory"),
            "gradients": steps * self._mean("traffic"),
            "loader": steps * self._mean("loader"),
            self.machines.store_resource(self.recipe): steps * self._mean("store"),
        }

    def _load(self, kind: str, shape: SequenceShape) -> StepLoad:
        recipe, node, workers = self.recipe, self.machines.node, self.machines.gpus
        forwards = forwards_of(recipe, kind, workers)
        own = sum(forwards)
        shape = shape if self.images else replace(shape, images=0)
        flops = own * step_flops(self._config, training_stage(recipe.train), shape.load)
        if recipe.where.train.gradient_checkpointing:
            flops *= _RECOMPUTED
        pixels, stored = self._of_an_image_token(video=kind == "video")
        threads = min(recipe.where.train.loader_threads, max(node.cpus // node.gpus, 1))
        rate = self.machines.rates.video_megapixels.value if kind == "video" else node.load_megapixels
        read = recipe.train.batch_sizes[kind] * (
            shape.image_tokens * stored + shape.text_tokens * TEXT_TOKEN_BYTES
        )
        traffic, between = self._traffic(len(forwards))
        return StepLoad(
            compute=flops / (node.gpu_tflops * 1e12 * node.mfu),
            memory=self._memory_bytes(len(forwards)) / (node.gpu_bandwidth_gbs * 1e9),
            traffic=traffic,
            hidden=recipe.where.train.zero_stage == 3,
            loader=own * shape.image_tokens * pixels / (threads * rate),
            store=read / self.machines.data_cluster(recipe).bytes_per_second,
            traffic_bytes=between,
            read_bytes=read,
        )

    def _of_an_image_token(self, *, video: bool) -> tuple[float, float]:
        """Megapixels to decode and bytes to read for one image token, in the mean."""
        sources = [source for source in self.data.sources if source.video == video]
        tokens = sum(source.image_tokens.value for source in sources)
        if not tokens:
            return 0.0, 0.0
        passes = {source.name: source.samples / max(source.rows, 1) for source in sources}
        pixels = sum(source.megapixels.value * passes[source.name] for source in sources)
        stored = sum(source.clean_bytes.value * passes[source.name] for source in sources)
        return pixels / tokens, stored / tokens

    def _memory_bytes(self, forwards: int) -> float:
        """Least memory traffic of a GPU in a step.

        Forward and backward each read the weights; activations are written and read again; gradients are
        written for each forward; the update reads and writes the optimizer's state.
        """
        memory, counts = self.found.memory, self.found.counts
        size = 2 if self.recipe.train.precision == "bf16" else 4
        each = 2 * size * counts.every + 2 * memory.activations + size * counts.trained
        return forwards * each + 2 * (memory.optimizer or 12 * counts.trained // self.machines.gpus)

    def _traffic(self, forwards: int) -> tuple[float, float]:
        """Seconds of a step's collectives, and the bytes they move between machines.

        A ring over k workers sends (k − 1)/k of a buffer from each to reduce or to gather it, and from each
        machine to the next. Without ZeRO gradients are reduced and gathered once a step, ZeRO-1 reduces them
        and gathers weights, ZeRO-2 reduces at each forward, ZeRO-3 also gathers all weights twice for each.
        """
        node, nodes, workers = self.machines.node, self.machines.nodes, self.machines.gpus
        counts, stage = self.found.counts, self.recipe.where.train.zero_stage
        size = 2 if self.recipe.train.precision == "bf16" else 4
        trained, every = size * counts.trained, size * counts.every
        sent = {
            0: 2 * trained,
            1: 2 * trained,
            2: (forwards + 1) * trained,
            3: forwards * (trained + 2 * every),
        }[stage] * ((workers - 1) / workers)
        between = sent if nodes > 1 else 0.0
        seconds = max(
            sent / (node.gpu_link_gbs * 1e9 * NETWORK_SHARE),
            between / (node.nic_gbps * 1e9 / 8 * NETWORK_SHARE),
        )
        return seconds, nodes * between
