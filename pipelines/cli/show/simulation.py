"""What ``casa simulate`` prints: stages, their bottlenecks, failures, other numbers of nodes, assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.text_format import byte_size, duration, number

if TYPE_CHECKING:
    from pipelines.cost.simulate.simulation import Simulation
    from pipelines.cost.simulate.stages import Resource, StageCost
    from pipelines.recipe.model import Recipe

_SHOWN_LOAD = 0.001
"""Loads below so small a share of the largest are left out of the text; JSON has all."""
DAY = 86_400


def show_simulation(
    found: Simulation, every: Sequence[Simulation], recipe: Recipe, basis: Mapping[str, str]
) -> None:
    """Print a simulation, and how it changes with the number of nodes."""
    console = Console(markup=False, highlight=False)
    machines = found.machines
    console.print(
        f"{recipe.name} on {machines.nodes} nodes of {machines.node.name}: {machines.gpus} "
        f"{machines.node.gpu}, {machines.cores} cores, USD {machines.node.price:,.2f} per node and hour\n",
        style="bold",
    )
    console.print(_stages(found))
    console.print()
    console.print(_bytes(found))
    console.print()
    console.print("Time that each resource alone would take", style="bold")
    for stage in found.stages:
        console.print(f"  {stage.name}: {_loads(stage)}")
    console.print(_meanings(found), style="dim")
    console.print()
    for text in (_training(found, recipe), _failures(found, recipe), _storage(found)):
        console.print(text)
    console.print()
    console.print(_scaling(every, machines.nodes))
    console.print(
        "eff.: speed per node, of that on one node. Under each time: the bottleneck.\n", style="dim"
    )
    console.print("Counted on", style="bold")
    for assumption, source in basis.items():
        console.print(f"  {assumption}: {source}")


def _stages(found: Simulation) -> Table:
    table = _table("stage", "time", "from", "to", "bottleneck", "USD", left=("stage", "bottleneck"))
    for stage in found.stages:
        ends = _ends(stage.seconds.low, stage.seconds.high)
        usd = f"{found.stage_cost(stage):,.0f}"
        table.add_row(stage.name, _time(stage.expected_s), *ends, stage.bottleneck, usd)
    ends = _ends(*(sum(getattr(stage.seconds, end) for stage in found.stages) for end in ("low", "high")))
    table.add_row("in all", _time(found.seconds), *ends, "", f"{found.cost:,.0f}", style="bold")
    return table


def _bytes(found: Simulation) -> Table:
    table = _table("bytes", "read", "written", "between nodes", "stay in the store", left=("bytes",))
    measures = ("read_bytes", "written_bytes", "traffic_bytes", "stored_bytes")
    for stage in found.stages:
        table.add_row(stage.name, *(byte_size(getattr(stage, measure)) for measure in measures))
    sums = (sum(getattr(stage, measure) for stage in found.stages) for measure in measures)
    table.add_row("in all", *map(byte_size, sums), style="bold")
    return table


def _table(*columns: str, left: Sequence[str]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def _ends(low: float, high: float) -> tuple[str, str]:
    return ("", "") if low == high else (_time(low), _time(high))


def _time(seconds: float) -> str:
    """A time to three digits at most: ``52 s``, ``26 min``, ``18.1 h``, ``3.1 d``."""
    for unit, name, limit in ((1, "s", 100), (60, "min", 100), (3600, "h", 72)):
        if seconds < limit * unit:
            return f"{seconds / unit:.{int(unit == 3600 or seconds < 10)}f} {name}"
    return f"{seconds / DAY:,.1f} d"


def _loads(stage: StageCost) -> str:
    return ", ".join(f"{name} {_time(seconds)}" for name, seconds in _shown_loads(stage).items())


def _shown_loads(stage: StageCost) -> dict[Resource, float]:
    """The loads that matter, largest first."""
    most = max(stage.loads.values())
    ordered = sorted(stage.loads.items(), key=lambda load: -load[1])
    return {name: seconds for name, seconds in ordered if seconds >= _SHOWN_LOAD * most}


def _meanings(found: Simulation) -> str:
    from pipelines.cost.simulate.stages import MEANS

    shown = dict.fromkeys(name for stage in found.stages for name in _shown_loads(stage))
    return "; ".join(f"{name}: {MEANS[name]}" for name in shown if name in MEANS) + "."


def _training(found: Simulation, recipe: Recipe) -> str:
    train, memory = found.stage("train"), found.training
    batch = " or ".join(str(size) for size in dict.fromkeys(recipe.train.batch_sizes.values()))
    fits = "which fits" if memory.fits else "which does not fit"
    uneven = [size for size in recipe.train.batch_sizes.values() if size % found.machines.gpus]
    idle = f" {uneven[0]} cannot be shared evenly by {found.machines.gpus} GPUs: some wait." if uneven else ""
    return (
        f"Training: a step takes {train.details['step_s']:.2f} s. {recipe.train.steps:,} steps of {batch} "
        f"sequences see the {number(found.data.sequences.value)} packed ones {found.passes:.2g} times.{idle} "
        f"A GPU holds {memory.memory.total / 2**30:.0f} GiB, {fits} {memory.gpu.usable_bytes / 2**30:.0f}."
    )


def _failures(found: Simulation, recipe: Recipe) -> str:
    train, machines = found.stage("train"), found.machines
    own = train.details
    given_up = recipe.where.train.max_failures
    return (
        f"Failures: one per {_time(machines.mtbf_s)} on {machines.nodes} nodes, "
        f"{number(train.failures)} to expect while training; each costs {duration(machines.node.restart_s)} "
        f"and {duration(own['lost_work_s_per_failure'])} of work. A checkpoint every "
        f"{recipe.train.checkpoint_every:,} steps ({duration(own['checkpoint_interval_s'])}) stops it for "
        f"{own['checkpoint_stall_s']:.2g} s. Together they make training {own['slowdown']:.2%} longer, and "
        f"{own['best_slowdown']:.2%} with train.checkpoint_every={own['daly_steps']:.0f}, best by Daly "
        f"({own['young_steps']:.0f} by Young). More failures than where.train.max_failures = {given_up} "
        f"end the stage: {own['given_up']:.2g} of all runs."
    )


def _storage(found: Simulation) -> str:
    return (
        f"Storage: {byte_size(found.stored_bytes)} stay, USD {found.month_cost:,.0f} a month "
        f"at USD {found.machines.node.store_price:g} per GB."
    )


def _scaling(every: Sequence[Simulation], chosen: int) -> Table:
    from pipelines.cost.simulate.simulation import efficiency

    names = [stage.name for stage in every[0].stages]
    table = _table("nodes", "GPUs", "time", "eff.", "USD", *names, left=names)
    for one in every:
        stages = (f"{_time(stage.expected_s)}\n{stage.bottleneck}" for stage in one.stages)
        table.add_row(
            str(one.machines.nodes),
            str(one.machines.gpus),
            _time(one.seconds),
            f"{efficiency(every[0], one):.0%}",
            f"{one.cost:,.0f}",
            *stages,
            style="bold" if one.machines.nodes == chosen else None,
        )
    return table


def simulation_as_json(
    found: Simulation, every: Sequence[Simulation], basis: Mapping[str, str]
) -> dict[str, Any]:
    """A simulation as plain JSON: seconds, bytes, USD."""
    from pipelines.cost.simulate.simulation import efficiency

    return {
        **_one(found),
        "node": found.machines.node.model_dump(mode="json"),
        "fits": found.training.fits,
        "memory_bytes": found.training.memory.total,
        "passes": found.passes,
        "store_usd_per_month": found.month_cost,
        "scaling": [{**_one(one), "efficiency": efficiency(every[0], one)} for one in every],
        "assumptions": dict(basis),
    }


def _one(found: Simulation) -> dict[str, Any]:
    return {
        "nodes": found.machines.nodes,
        "gpus": found.machines.gpus,
        "seconds": found.seconds,
        "usd": found.cost,
        "stored_bytes": found.stored_bytes,
        "stages": [
            {**asdict(stage), "bottleneck": stage.bottleneck, "usd": found.stage_cost(stage)}
            for stage in found.stages
        ],
    }
