"""Taking a plan to its end while somebody watches: what ``casa run`` and ``casa prepare`` share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pipelines.cli.session import OpenRun

INTERRUPTED = 130


def walk(opened: OpenRun, command: str, *, as_json: bool, plain: bool) -> dict[str, dict[str, Any]]:
    """Run all stages of a plan, and record it as the store's latest run.

    Args:
        opened: The plan.
        command: What was typed, without options: to be told how to go on after an interrupt.
        as_json: One JSON object a line, for scripts.
        plain: Lines instead of a live table.

    Returns:
        Manifest of each stage, by name.

    Raises:
        StageFailed, ClusterError: As the walker does.
        Exit: Interrupted from the keyboard; jobs that run go on.
    """
    from pipelines.cli.watch import JsonWatcher, LiveWatcher, PlainWatcher, is_terminal
    from pipelines.dag.run import Runner

    live = not (as_json or plain) and is_terminal()
    watcher = (LiveWatcher if live else JsonWatcher if as_json else PlainWatcher)(opened.stages)
    walker = Runner(
        opened.stages,
        opened.records,
        opened.cluster,
        watcher,
        parallel=opened.recipe.where.parallel_stages,
        retries=opened.recipe.where.retries,
    )
    opened.record()
    try:
        with watcher:
            return walker.run()
    except KeyboardInterrupt:
        _explain_interrupt(walker.active, command)
        raise typer.Exit(INTERRUPTED) from None


def _explain_interrupt(active: list[str], command: str) -> None:
    going_on = f"Still running in Ray: {', '.join(active)}." if active else "No stage was running."
    stop = "casa stop"
    width = max(len(command), len(stop))
    print(
        f"\nInterrupted. {going_on}\n"
        f"  {command:<{width}}    goes on from here (repeat your --set options)\n"
        f"  {stop:<{width}}    ends the jobs and Ray; finished stages and checkpoints are kept",
        file=sys.stderr,
    )
