"""What ``casa plan --training`` and ``casa train --dry-run`` print: memory, time, steps."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.text_format import byte_size, duration, number

if TYPE_CHECKING:
    from pipelines.cost.dry_run import DryRun, DryStep
    from pipelines.cost.estimate import TrainEstimate

PARTS = ("parameters", "gradients", "optimizer", "activations", "buffers")
MEANS = {
    "parameters": "weights that forwards read",
    "gradients": "kept until the update",
    "optimizer": "float32 master weights and Adam's moments",
    "activations": "kept by one forward for its backward",
    "buffers": "DeepSpeed's, for communication",
}


def show_estimate(found: TrainEstimate, name: str) -> None:
    """Print memory by part, whether it fits, and the time to finish."""
    from pipelines.cost.estimate import MFU, MFU_RANGE

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", title=f"Training {name}", title_justify="left")
    table.add_column("on each GPU")
    table.add_column("GiB", justify="right")
    table.add_column("")
    for part in PARTS:
        table.add_row(part, f"{getattr(found.memory, part) / 2**30:.1f}", MEANS[part])
    verdict = "fits" if found.fits else "[red]does not fit[/red]"
    limit = found.gpu.usable_bytes / 2**30
    table.add_row(
        "all", f"{found.memory.total / 2**30:.1f}", f"{verdict} {found.gpu.name}, {limit:.0f} usable"
    )
    if found.memory.host:
        table.add_row("host memory", f"{found.memory.host / 2**30:.1f}", "of each worker, offloaded")
    console.print(table)
    tokens = ", ".join(
        f"{number(text)} text and {number(image)} image tokens in a step of {kind}s"
        for kind, (text, image) in found.tokens.items()
    )
    console.print(
        f"{found.counts.every / 1e9:.2f} B parameters, {found.counts.trained / 1e9:.2f} B of them trained; "
        f"{found.steps:,} steps of {found.workers} GPUs x {found.forwards} forwards, at most {tokens}."
    )
    slow, fast = (duration(found.seconds(mfu)) for mfu in MFU_RANGE)
    console.print(
        f"About {duration(found.seconds())} at {MFU:.0%} of the peak rate, the paper's own; "
        f"{fast} at {MFU_RANGE[1]:.0%}, {slow} at {MFU_RANGE[0]:.0%}. "
        f"A checkpoint has {byte_size(found.checkpoint_bytes)}."
    )


def estimate_json(found: TrainEstimate) -> dict[str, Any]:
    """What training takes as plain JSON; sizes in bytes, times in seconds."""
    return {
        "memory_bytes": {**asdict(found.memory), "total": found.memory.total},
        "fits": found.fits,
        "gpu": asdict(found.gpu),
        "workers": found.workers,
        "forwards": found.forwards,
        "tokens": found.tokens,
        "parameters": asdict(found.counts),
        "steps": found.steps,
        "seconds": found.seconds(),
        "checkpoint_bytes": found.checkpoint_bytes,
    }


def show_step(step: DryStep, number: int) -> None:
    """Print one step of a dry run on one line."""
    rates = ", ".join(f"{rate:.1e} {kind}" for kind, rate in step.rates.items())
    print(
        f"step {number}  {step.kind}  {step.forwards} forwards  {step.text_tokens:,} text and "
        f"{step.image_tokens:,} image tokens  loss {step.loss:.3f}  gradient {step.grad_norm:.3f}  "
        f"rate {rates}  {step.seconds:.1f} s",
        flush=True,
    )


def show_dry_run(found: DryRun) -> None:
    """Print what trains, the learning rates over the run, and the peak memory."""
    print(f"\n{found.trains}\n\nlearning rate at step")
    trained = found.steps[0].rates
    for step, rates in found.schedule.items():
        print(f"  {step:>9,}  " + "  ".join(f"{rates[kind]:.1e} {kind}" for kind in trained))
    print(f"\npeak memory {found.peak_gib:.1f} GiB")
