"""Part of a run: a stage with all it needs, where other runs may be making that."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from casa_core.errors import ClusterError, ConfigError
from pipelines.dag.artifact import read_manifest
from pipelines.text_format import did_you_mean

if TYPE_CHECKING:
    from pipelines.cli.shared.run_handle import OpenRun
    from pipelines.dag.plan import PlannedStage

POLL_S = 10.0


def up_to(opened: OpenRun, name: str) -> OpenRun:
    """A plan's stage of some name, which is the last then, and all it needs.

    Raises:
        ConfigError: If there is no such stage.
    """
    by_name = {stage.name: stage for stage in opened.stages}
    if name not in by_name:
        raise ConfigError(
            f"The recipe {opened.recipe.name} has no stage {name}.",
            f"Its stages are {', '.join(by_name)}.",
            did_you_mean(name, by_name, "`casa plan` lists them."),
        )
    needed, waiting = {name}, [name]
    while waiting:
        new = set(by_name[waiting.pop()].spec.inputs.values()) - needed
        needed |= new
        waiting += new
    before = [stage for stage in opened.stages if stage.name in needed and stage.name != name]
    return replace(opened, stages=[*before, by_name[name]], recorded=opened.stages)


def await_inputs(stages: Sequence[PlannedStage], within_s: float) -> None:
    """Wait until stages are whole in the store, made by other runs.

    Raises:
        ClusterError: If one is not in time.
    """
    deadline = time.monotonic() + within_s
    missing = [stage for stage in stages if not stage.spec.state]
    while missing := [stage for stage in missing if read_manifest(stage.folder) is None]:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Stage {missing[0].name} was not made within {within_s:.0f} s.",
                f"Another run was to make it at {missing[0].folder}.",
                "Look at that run; without `--inputs-within` this one makes what it needs itself.",
            )
        print(f"waiting for {', '.join(stage.name for stage in missing)}", file=sys.stderr, flush=True)
        time.sleep(min(POLL_S, max(0.1, deadline - time.monotonic())))
