"""A recipe's stages in other systems: each file is what its system takes, and runs our own command."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
import yaml
from typer.testing import CliRunner

pytest.importorskip("lightkube", reason="pip install -e '.[dev]' brings Kubernetes' types")
from lightkube.models import core_v1, rbac_v1

from pipelines.cli.app import app
from pipelines.dag.plan import StageSpec
from pipelines.recipe import build_stages, load_recipe
from pipelines.workflows.steps import recipe_text, workflow_steps
from tests.support.infra import argo, kuberay
from tests.support.infra.schema import problems

STORE = "where.store=s3://bucket/runs"
CLUSTER = "where.ray.address=http://head:8265"
KUBERNETES = {
    kind.__name__: kind
    for kind in (
        *(core_v1.ConfigMap, core_v1.Namespace, core_v1.ServiceAccount),
        *(rbac_v1.Role, rbac_v1.RoleBinding),
    )
}
STAGES = {stage.name: set(stage.inputs.values()) for stage in build_stages(load_recipe("quickstart"))}
"""The recipe's own dependencies: what every workflow must have."""
WITHOUT_ENDPOINT = {name: needs for name, needs in STAGES.items() if name != "deploy"}


def export(to: str, folder: Path, *words: str, code: int = 0) -> str:
    arguments = ["export-dag", "quickstart", str(folder), "--to", to, *words]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dag")
    for to in ("kuberay", "argo"):
        export(to, folder, "--set", STORE, "--image", "registry.example.org/casa@sha256:12ab")
    export("airflow", folder, "--set", STORE, "--set", CLUSTER, "--set", "seed=7")
    return folder


def objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def check_command(line: str, stage: str) -> None:
    """A step's command line is one that ours takes, for its stage."""
    program, name, *arguments = shlex.split(line)
    assert (program, name) == ("casa", "run")
    context = typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
    assert context.params["until"] == stage


@pytest.mark.parametrize("name", ["kuberay.yaml", "argo.yaml"])
def test_every_object_has_the_fields_and_types_of_its_kind(files: Path, name: str):
    kinds = KUBERNETES | kuberay.KINDS | argo.KINDS
    for one in objects(files / name):
        assert not list(problems(one, kinds[one["kind"]]))


def check_job(job: dict[str, Any], stage: str) -> None:
    assert not list(problems(job, kuberay.RayJob))
    check_command(job["spec"]["entrypoint"], stage)
    groups = [
        job["spec"]["rayClusterSpec"]["headGroupSpec"],
        *job["spec"]["rayClusterSpec"]["workerGroupSpecs"],
    ]
    for group in groups:
        [container] = group["template"]["spec"]["containers"]
        assert {"name": "CASA_IMAGE", "value": container["image"]} in container["env"]
        assert re.search(r":\d|@sha256:", container["image"])
    gpus = [group for group in groups if group.get("groupName") == "gpu"]
    assert bool(gpus) == stage.startswith(("train", "evaluate")), "nodes with GPUs only where they are used"
    assert all("@sha256:12ab" in one["template"]["spec"]["containers"][0]["image"] for one in gpus)


def test_kuberay_has_a_job_per_stage_that_waits_for_what_it_needs(files: Path):
    jobs = [one for one in objects(files / "kuberay.yaml") if one["kind"] == "RayJob"]
    found = {shlex.split(job["spec"]["entrypoint"])[4]: job for job in jobs}
    assert found.keys() == WITHOUT_ENDPOINT.keys()
    for stage, job in found.items():
        check_job(job, stage)
        assert "--inputs-within" in job["spec"]["entrypoint"]
        assert len(job["metadata"]["name"]) <= 47, "KubeRay's bound"


def test_argos_tasks_have_the_recipes_dependencies_and_create_jobs_of_ours(files: Path):
    [workflow] = [one for one in objects(files / "argo.yaml") if one["kind"] == "Workflow"]
    templates = {one["name"]: one for one in workflow["spec"]["templates"]}
    tasks = templates[workflow["spec"]["entrypoint"]]["dag"]["tasks"]
    needs = {task["name"]: set(task.get("depends", "").replace(" && ", " ").split()) for task in tasks}
    assert needs == WITHOUT_ENDPOINT
    for task in tasks:
        [job] = yaml.safe_load_all(templates[task["template"]]["resource"]["manifest"])
        check_job(job, task["name"])
        assert "--inputs-within" not in job["spec"]["entrypoint"], "Argo waits"
        assert "{{" not in templates[task["template"]]["resource"]["manifest"], "Argo would replace it"


def test_the_recipe_that_is_handed_over_plans_the_same_work(files: Path, tmp_path: Path):
    [held] = [one for one in objects(files / "kuberay.yaml") if one["metadata"]["name"] == "casa-run"]
    path = tmp_path / "run.yaml"
    path.write_text(held["data"]["run.yaml"])
    assert load_recipe(path).where.ray.address == "http://127.0.0.1:8265"
    for recipe, overrides in (("quickstart", [STORE]), ("ablation", [STORE, "seed=5"])):
        given = load_recipe(recipe, overrides)
        path.write_text(recipe_text(given))
        mine, theirs = (
            [(one.name, one.settings, one.inputs) for one in build_stages(each)]
            for each in (given, load_recipe(path))
        )
        assert mine == theirs


class Operator:
    """Takes what Airflow's BashOperator is given, and notes what comes after it."""

    made: ClassVar[dict[str, Operator]] = {}

    def __init__(self, *, task_id: str, bash_command: str) -> None:
        self.command = bash_command
        self.earlier: set[str] = set()
        self.task_id = task_id
        Operator.made[task_id] = self

    def __rshift__(self, later: Operator) -> Operator:
        later.earlier.add(self.task_id)
        return later


class Dag:
    """Takes what Airflow's DAG is given."""

    def __init__(self, **settings: Any) -> None:
        assert settings["dag_id"] == "casa-quickstart"
        assert settings["schedule"] is None

    def __enter__(self) -> Dag:
        return self

    def __exit__(self, *error: object) -> None:
        return


def test_airflows_file_has_a_task_per_stage_with_the_recipes_dependencies(
    files: Path, monkeypatch: pytest.MonkeyPatch
):
    path = files / "casa_quickstart.py"
    operators, sdk = (
        types.ModuleType(n) for n in ("airflow.providers.standard.operators.bash", "airflow.sdk")
    )
    vars(operators)["BashOperator"], vars(sdk)["DAG"] = Operator, Dag
    for name in (
        "airflow",
        "airflow.providers",
        "airflow.providers.standard",
        "airflow.providers.standard.operators",
    ):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module in (operators, sdk):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(path.read_text(), str(path), "exec"), {"__file__": str(path)})
    assert {name: task.earlier for name, task in Operator.made.items()} == STAGES
    for name, task in Operator.made.items():
        check_command(task.command, name)
        recipe = load_recipe(shlex.split(task.command)[2])
        assert (recipe.seed, recipe.where.ray.address) == (7, "http://head:8265")


@pytest.mark.parametrize(
    ("to", "words", "message"),
    [
        ("kuberay", [], "where.store = runs is a folder of this machine"),
        ("airflow", ["--set", STORE], "The recipe has no cluster"),
    ],
)
def test_what_the_steps_would_not_find_is_refused(to: str, words: list[str], message: str, tmp_path: Path):
    assert message in export(to, tmp_path, *words, code=2)
    assert not any(tmp_path.iterdir())


def test_stages_whose_names_would_be_one_are_refused():
    stages = [
        StageSpec(name=name, kind="clean", settings={}, function="x:y") for name in ("clean-A", "clean-a")
    ]
    with pytest.raises(ValueError, match="one name"):
        workflow_steps(stages, with_endpoint=True)
