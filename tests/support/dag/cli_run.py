"""``casa`` over toy stages, in a process of its own:

python -m tests.support.dag.cli_run <chain | gated | failing> run …
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.cli import main
from pipelines.cli.shared import run_handle
from pipelines.dag.plan import StageSpec
from pipelines.recipe import Recipe
from pipelines.recipe.stages import store_folder
from tests.support.dag.runner import gated, toy


def toy_stages(name: str, store: Path) -> list[StageSpec]:
    """The stages of a toy run."""
    if name == "gated":
        return gated(store)
    if name == "failing":
        return [toy("broken", "fail", zero=0)]
    return [toy("one", "write_number", number=101), toy("two", "write_number", {"x": "one"}, number=10)]


if __name__ == "__main__":
    which = sys.argv.pop(1)

    def build(recipe: Recipe) -> list[StageSpec]:
        return toy_stages(which, store_folder(recipe))

    run_handle.build_stages = build
    run_handle.current_versions = lambda **_: {
        "write_number": "1",
        "wait_for_gate": "1",
        "count_inputs": "1",
        "fail": "1",
    }
    main()
