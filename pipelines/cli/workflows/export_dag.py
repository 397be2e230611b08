"""``casa export-dag``: a recipe's stages as another system's workflow."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared.options import JsonOption, RecipeArgument, SetOption
from pipelines.cli.show.format import print_json


class System(StrEnum):
    """Systems whose workflows are written."""

    kuberay = "kuberay"
    argo = "argo"
    airflow = "airflow"


def export_dag(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Argument(help="Folder to write to.", file_okay=False)],
    to: Annotated[System, typer.Option("--to", help="For whom: kuberay, argo or airflow.")],
    set_: SetOption = None,
    image: Annotated[
        str | None, typer.Option(help="Image of nodes with GPUs, best with its digest (kuberay, argo).")
    ] = None,
    cpu_image: Annotated[
        str | None, typer.Option(help="Image of the head and of nodes without GPUs.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write a recipe's stages as RayJobs for KubeRay, as an Argo Workflow, or as a file for Airflow.

    Each step runs `casa run --until STAGE`: fingerprints, resuming and the store stay as they are, and a run
    may be begun by one system and ended by another. On KubeRay every step has a cluster of its own that ends
    with it, so the endpoint is left out (infra/kubernetes/serve); Airflow's steps use the recipe's cluster.

    Examples:

      casa export-dag my.yaml k8s --to kuberay --set where.store=s3://bucket/runs

      casa export-dag my.yaml k8s --to argo --set where.store=s3://bucket/runs

      casa export-dag my.yaml dags --to airflow --set where.ray.address=http://head:8265
    """
    from casa_core.errors import ConfigError
    from pipelines.recipe import build_stages, load_recipe
    from pipelines.storage.atomic import write_whole
    from pipelines.workflows import airflow, argo, kuberay
    from pipelines.workflows.steps import recipe_text, workflow_steps

    loaded = load_recipe(recipe, set_ or ())
    steps = workflow_steps(build_stages(loaded), with_endpoint=to is System.airflow)
    if to is System.airflow:
        if loaded.where.ray.is_local:
            raise ConfigError(
                "The recipe has no cluster: where.ray.address is local.",
                "Airflow runs each step wherever a worker is free, and each would start a Ray of its own.",
                "Use `--set where.ray.address=http://head:8265`.",
            )
        name = f"casa_{loaded.name.replace('-', '_')}"
        files = {
            f"{name}.py": airflow.airflow_file(loaded.name, steps, f"{name}.yaml"),
            f"{name}.yaml": recipe_text(loaded),
        }
    else:
        write = kuberay.ray_jobs if to is System.kuberay else argo.argo_workflow
        text = recipe_text(loaded, kuberay.ON_THE_HEAD)
        files = {f"{to}.yaml": write(loaded.name, steps, text, kuberay.read_images(image, cpu_image))}
    output.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_whole(output / file, content)
    if json_:
        print_json({"files": [str(output / file) for file in files], "steps": [step.name for step in steps]})
        return
    print("\n".join(str(output / file) for file in files))
