"""Simulated stages: what each resource alone would need, and the time, bytes and failures it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from casa_core.flops import forward_flops
from pipelines.cost.estimate import full_config
from pipelines.cost.forecast import Cluster, Estimate, Forecast, Rates, StageTime
from pipelines.cost.simulate.node import Node
from pipelines.cost.synthetic import shapes_of
from pipelines.recipe.model import Recipe
from pipelines.recipe.pack import IMAGE_TOKEN_SIDES

Resource = Literal[
    "start",
    "CPU decode",
    "CPU encoding",
    "packer",
    "network",
    "store",
    "disks",
    "GPU compute",
    "GPU memory",
    "gradients",
    "loader",
    "checkpoints",
]
MEANS: dict[Resource, str] = {
    "start": "what a stage takes before its work begins",
    "packer": "the one core that assigns samples to sequences",
    "network": "the machines' links to the store",
    "store": "the object store's own rate",
    "disks": "of the shared folder that where.store names",
    "GPU memory": "its bandwidth",
    "gradients": "gradients, and weights under ZeRO, between GPUs",
    "loader": "CPU threads that decode pictures for training",
    "checkpoints": "steps that wait for one to be copied or written",
}
"""What is meant, where the name alone does not say it."""
QUESTION_TOKENS = 64
"""Text tokens of an evaluated question with its template; assumed."""
ANSWER_BYTES = 1_000
"""Bytes that an answered question adds to the store; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """A cluster of equal machines, and what one of their cores does.

    Attributes:
        nodes: Number of machines.
        rates: Rates of one core at preparing data.
    """

    node: Node
    nodes: int
    rates: Rates

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return self.nodes * self.node.gpus

    @property
    def cores(self) -> int:
        """Cores of all machines."""
        return self.nodes * self.node.cpus

    @property
    def mtbf_s(self) -> float:
        """Mean time between failures of any of the machines, s."""
        return self.node.mtbf_hours * 3600 / self.nodes

    def data_cluster(self, recipe: Recipe) -> Cluster:
        """The machines as the forecast of preparing data takes them."""
        return Cluster(
            nodes=self.nodes,
            cpus_per_node=self.node.cpus,
            network_gbps=self.node.store_link_gbps,
            rates=self.rates,
            store_gbps=_store_gbps(self.node, recipe),
        )

    def store_resource(self, recipe: Recipe) -> Resource:
        """What bounds reading from the store and writing to it."""
        if self.nodes * self.node.store_link_gbps < _store_gbps(self.node, recipe):
            return "network"
        return "store" if "://" in recipe.where.store else "disks"


def _store_gbps(node: Node, recipe: Recipe) -> float:
    return node.store_gbps if "://" in recipe.where.store else 8 * node.folder_gbs


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What a stage costs.

    Attributes:
        loads: Resource → seconds that it alone would need.
        seconds: Duration without failures, s.
        expected_s: Duration with the failures to expect, s.
        failures: Expected number of failures in that time.
        read_bytes, written_bytes: Bytes from and to the store.
        traffic_bytes: Bytes between machines: gradients, and weights under ZeRO.
        stored_bytes: Bytes that stay in the store.
    """

    name: str
    loads: dict[Resource, float]
    seconds: Estimate
    expected_s: float = 0.0
    failures: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    traffic_bytes: float = 0.0
    stored_bytes: float = 0.0
    details: dict[str, float] = field(default_factory=dict)

    @property
    def bottleneck(self) -> Resource:
        """The resource that needs most time."""
        return max(self.loads, key=lambda resource: self.loads[resource])


def data_stages(found: Forecast, machines: Machines, recipe: Recipe) -> list[StageCost]:
    """The stages ``clean`` and ``pack``, from the forecast that ``casa data plan`` makes."""
    node, store = machines.node, machines.store_resource(recipe)
    read, clean, pack = (found.total(name) for name in ("read_bytes", "clean_bytes", "pack_bytes"))
    cleaned: dict[Resource, float] = {
        "CPU decode": found.clean.compute.value,
        store: found.clean.network.value,
    }
    packed: dict[Resource, float] = {
        "CPU encoding": found.pack.compute.value - found.pack.serial.value,
        "packer": found.pack.serial.value,
        store: found.pack.network.value,
    }
    return [
        _resumed(
            "clean",
            cleaned,
            found.clean,
            machines,
            # Each source is a stage of its own in the DAG; they share the cluster.
            start_s=node.clean_start_s * len(found.sources),
            read_bytes=read.value,
            written_bytes=clean.value,
        ),
        _resumed(
            "pack",
            packed,
            found.pack,
            machines,
            start_s=node.pack_start_s,
            read_bytes=pack.value,
            written_bytes=pack.value,
        ),
    ]


def _resumed(
    name: str,
    loads: dict[Resource, float],
    time: StageTime,
    machines: Machines,
    *,
    start_s: float,
    read_bytes: float,
    written_bytes: float,
) -> StageCost:
    stage = StageCost(
        name=name,
        loads={**loads, "start": start_s},
        seconds=time.seconds + Estimate.exactly(start_s),
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        stored_bytes=written_bytes,
    )
    return goes_on(stage, machines)


def goes_on(stage: StageCost, machines: Machines) -> StageCost:
    """The stage with failures, where it goes on shard by shard or answer by answer: each costs a restart."""
    work = stage.seconds.value
    expected = work * (1 + machines.node.restart_s / machines.mtbf_s)
    return replace(stage, expected_s=expected, failures=expected / machines.mtbf_s)


def evaluate_stage(recipe: Recipe, machines: Machines, questions: int, weight_bytes: float) -> StageCost:
    """The stage ``evaluate``: every model answers all questions, with one engine on each GPU.

    A question has one picture of the largest size. The tower and the prompt cost operations; each answer
    token reads the weights once for all of a batch.

    Args:
        questions: For each model.
        weight_bytes: Bytes of a model's weights as it computes.
    """
    node = machines.node
    asked = questions * (1 + len(recipe.evaluate.baselines))
    largest = next(iter(shapes_of(recipe).values()))
    shape = replace(largest, text_tokens=QUESTION_TOKENS, images=1, documents=1)
    prefill = forward_flops(full_config(recipe.model), shape.load) / (node.gpu_tflops * 1e12 * node.mfu)
    read = recipe.evaluate.max_new_tokens * weight_bytes / (node.gpu_bandwidth_gbs * 1e9)
    each: dict[Resource, float] = {
        "GPU compute": prefill,
        "GPU memory": read / recipe.evaluate.batch_size,
    }
    if node.answers is not None:
        scale = 1 / node.answers / sum(each.values())
        each = {resource: seconds * scale for resource, seconds in each.items()}
    loads: dict[Resource, float] = {r: asked * seconds / machines.gpus for r, seconds in each.items()}
    on_gpus = sum(loads.values())
    pixels = (shape.side * IMAGE_TOKEN_SIDES[recipe.model.backbone]) ** 2
    loads["CPU decode"] = asked * pixels / 1e6 / (machines.cores * node.load_megapixels)
    loads["start"] = node.evaluate_start_s
    stage = StageCost(
        name="evaluate",
        loads=loads,
        seconds=Estimate.exactly(node.evaluate_start_s + max(on_gpus, loads["CPU decode"])),
        read_bytes=weight_bytes * machines.nodes,
        written_bytes=float(asked * ANSWER_BYTES),
        stored_bytes=float(asked * ANSWER_BYTES),
        details={"questions": asked},
    )
    return goes_on(stage, machines)
