"""A recipe's full run on a cluster, simulated: its stages, their cost, other numbers of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.cost.estimate import TrainEstimate, estimate
from pipelines.cost.forecast import NETWORK_SHARE, Forecast, Rates, forecast
from pipelines.cost.simulate.node import Node
from pipelines.cost.simulate.stages import QUESTION_TOKENS, Machines, StageCost, data_stages, evaluate_stage
from pipelines.cost.simulate.training import Training
from pipelines.cost.workload import Workload
from pipelines.recipe.model import Recipe

SCALE = (1, 2, 4, 8, 16)
"""Numbers of nodes that are compared."""
PAPERS_QUESTIONS = 35_455
"""Questions of the nine picture benchmarks of Table 2, as published: ChartQA 2,500, DocVQA 5,349 and InfoVQA
2,801 (validation), OCRBench 1,000, TextVQA 5,000, RealWorldQA 765, AI2D 3,088, GQA 12,578, MME 2,374."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A run on some nodes.

    Attributes:
        stages: In the order of the run, one after the other.
        training: Memory and operations of the train stage.
        passes: How often training sees each packed sequence.
    """

    machines: Machines
    stages: tuple[StageCost, ...]
    data: Forecast
    training: TrainEstimate
    passes: float

    @property
    def seconds(self) -> float:
        """Expected duration of all stages, with failures, s."""
        return sum(stage.expected_s for stage in self.stages)

    @property
    def cost(self) -> float:
        """Price of the machines for that time, USD."""
        return sum(map(self.stage_cost, self.stages))

    @property
    def stored_bytes(self) -> float:
        """Bytes in the store when all is done."""
        return sum(stage.stored_bytes for stage in self.stages)

    @property
    def month_cost(self) -> float:
        """Price of keeping them for a month, USD."""
        return self.stored_bytes / 1e9 * self.machines.node.store_price

    def stage(self, name: str) -> StageCost:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def stage_cost(self, stage: StageCost) -> float:
        """Price of all machines while a stage runs, USD."""
        return stage.expected_s / 3600 * self.machines.nodes * self.machines.node.price


def simulate(
    recipe: Recipe, work: Workload, node: Node, rates: Rates, nodes: int, questions: int = PAPERS_QUESTIONS
) -> Simulation:
    """Simulate the recipe's run.

    Args:
        work: Its data.
        node: One of the machines; each GPU has a training worker, whatever the recipe says of workers.
        rates: Rates of one core at preparing data.
        nodes: Number of machines.
        questions: Questions that evaluation asks of each model.

    Raises:
        ConfigError: For a model that cannot be built, or a run that failures would never let end.
    """
    machines = Machines(node=node, nodes=nodes, rates=rates)
    data = forecast(work.listing, work.budgets, work.images, machines.data_cluster(recipe))
    found = estimate(recipe, node.as_gpu, machines.gpus)
    training = Training(recipe, machines, data, found)
    stages = [*data_stages(data, machines, recipe), training.stage("train")]
    if "blind" in recipe.evaluate.baselines:
        stages.append(Training(recipe, machines, data, found, images=False).stage("train-blind"))
    weights = found.counts.every * (2 if recipe.train.precision == "bf16" else 4)
    stages.append(evaluate_stage(recipe, machines, questions, weights))
    images, videos = recipe.train.image_video_ratio
    batch = recipe.train.batch_sizes
    mean = (images * batch["image"] + videos * batch["video"]) / (images + videos)
    return Simulation(
        machines=machines,
        stages=tuple(stages),
        data=data,
        training=found,
        passes=recipe.train.steps * mean / max(data.sequences.value, 1.0),
    )


def over_nodes(
    recipe: Recipe,
    work: Workload,
    node: Node,
    rates: Rates,
    questions: int = PAPERS_QUESTIONS,
    counts: Iterable[int] = SCALE,
) -> list[Simulation]:
    """The run on each number of nodes; arguments as of :func:`simulate`."""
    return [simulate(recipe, work, node, rates, count, questions) for count in counts]


def efficiency(one: Simulation, other: Simulation) -> float:
    """Speed of ``other`` per node over that of ``one``: 1 where twice the nodes take half the time."""
    return one.seconds * one.machines.nodes / (other.seconds * other.machines.nodes)


def assumptions(found: Simulation, recipe: Recipe, questions: int) -> Mapping[str, str]:
    """What the simulation counts on: the assumption, and where it comes from."""
    node, rates = found.machines.node, found.machines.rates
    values = {
        f"{name} {value:g}" if isinstance(value, float | int) else f"{name} {value}": node.sources[name]
        for name, value in node.model_dump(exclude={"name", "sources"}).items()
        if name in node.sources
    }
    for name in ("clean_megapixels", "video_megapixels", "encode_tokens", "pack_samples"):
        rate = getattr(rates, name)
        values[f"{name} {rate.value:g} per second and core"] = rate.source
    values |= {f"data: {source.name}": source.basis or "as the listing says" for source in found.data.sources}
    fill = found.data.fill
    machines, papers = found.machines, questions == PAPERS_QUESTIONS
    return values | {
        f"{NETWORK_SHARE:.0%} of every link's and the store's rate": "assumed",
        f"full sequences; the data fill {fill['text']:.0%} of text, {fill['image']:.0%} of images": (
            "as `casa plan --training`: an upper bound, for which mfu holds"
        ),
        "a training worker on each GPU": f"assumed: set where.train.workers to {machines.gpus}",
        "all cores prepare data": f"assumed: set where.data.workers to {machines.cores}",
        f"{questions:,} evaluated questions": "nine benchmarks of Table 2, published"
        if papers
        else "as given",
        f"one picture and {QUESTION_TOKENS} tokens per question, an engine on each GPU": "assumed",
        "stages one after the other, all machines paid until the end": "assumed",
        "not counted": "deploy, report, corpora that a recipe generates, scores while training, stragglers, "
        "requests to the store" + _earlier(recipe),
    }


def _earlier(recipe: Recipe) -> str:
    weights = recipe.model.weights
    if weights is None or weights.recipe is None:
        return ""
    return f"; the run of {weights.recipe} that it starts from: `casa simulate {weights.recipe}`"
