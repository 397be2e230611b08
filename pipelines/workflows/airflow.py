"""A recipe's steps as a file of Airflow 3: each is a command on a worker, whose Ray jobs run on a cluster."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from pipelines.workflows.steps import Step

RECIPE = "RECIPE"
"""Stands for the recipe's path in the commands."""

_FILE = '''"""The recipe {recipe}, a task per stage. Written by `casa export-dag`; the recipe lies beside."""

import shlex
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

RECIPE = Path(__file__).with_name("{file}")
STAGES = {{
{stages}
}}
"""Task -> its stage, and the tasks that come before it."""

# A task that is cleared or retried skips what is done, and follows a job that still runs.
with DAG(dag_id="{dag}", schedule=None, catchup=False, default_args={{"retries": 2}}, tags=["casa"]) as dag:
    tasks = {{
        name: BashOperator(
            task_id=name,
            bash_command=f"{command}",
        )
        for name, (stage, _) in STAGES.items()
    }}
    for name, (_, needs) in STAGES.items():
        for earlier in needs:
            tasks[earlier] >> tasks[name]
'''


def airflow_file(recipe: str, steps: Sequence[Step], file: str) -> str:
    """The text of a file for Airflow's folder of DAGs.

    Args:
        recipe: Its name.
        file: Name of the recipe's file, which lies beside.
    """
    lines = [f"    {step.name!r}: ({step.stage!r}, {list(step.needs)!r})," for step in steps]
    marks = {"needs": (), "kind": ""}
    words = Step(name="x", stage="STAGE", **marks).command(RECIPE)  # type: ignore[arg-type]
    shown = {RECIPE: "{shlex.quote(str(RECIPE))}", "STAGE": "{shlex.quote(stage)}"}
    command = " ".join(shown.get(word, shlex.quote(word)) for word in words)
    return _FILE.format(
        recipe=recipe,
        file=file,
        stages="\n".join(lines).replace("'", '"'),
        dag=f"casa-{re.sub(r'[^A-Za-z0-9_.-]', '-', recipe)}",
        command=command,
    )
