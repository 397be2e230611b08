"""A recipe's steps as KubeRay RayJobs, each on a cluster of its own that ends with it."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import infra
from casa_core.errors import ConfigError
from pipelines.dag.plan import DATA_KINDS
from pipelines.workflows.steps import Step

MANIFESTS = Path(infra.__file__).with_name("kubernetes")
NAMESPACE = "casa"
RECIPE = "/etc/casa/run/run.yaml"
"""Where the config map ``casa-run`` is mounted (infra/kubernetes/nodes)."""
ON_THE_HEAD = "http://127.0.0.1:8265"
"""Ray's address as a job's driver sees it."""
GPU_IMAGE, CPU_IMAGE = "casa", "casa-cpu"
"""Names of images in infra/kubernetes/nodes."""
WITHOUT_GPUS = DATA_KINDS | {"report", "compare"}
GPU_GROUP = "gpu"
LONGEST_WAIT_S = 7 * 86400

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of nodes with GPUs, and of the others."""

    gpu: str
    cpu: str


def read_images(gpu: str | None = None, cpu: str | None = None) -> Images:
    """The images that were named, else those of infra/kubernetes/versions."""
    listed = _manifest("versions/kustomization.yaml")[0]["images"]
    known = {one["name"]: f"{one.get('newName', one['name'])}:{one['newTag']}" for one in listed}
    return Images(gpu=gpu or known[GPU_IMAGE], cpu=cpu or known[CPU_IMAGE])


def ray_jobs(recipe: str, steps: Sequence[Step], text: str, images: Images) -> str:
    """Namespace, config maps and one RayJob per step, for ``kubectl apply -f``.

    KubeRay knows no order of jobs: each waits on its head, without other nodes, until what it needs is whole
    in the store.

    Args:
        recipe: Its name.
        text: The recipe's file.
    """
    jobs = [
        {
            **ray_job(step, images, f"--inputs-within {LONGEST_WAIT_S}"),
            "metadata": {"name": f"{_short(recipe)}-{step.name}"[:47].rstrip("-"), "namespace": NAMESPACE},
        }
        for step in steps
    ]
    return dump([*surroundings(text), *jobs])


def surroundings(text: str) -> list[Object]:
    """Namespace, the environment of Ray's containers, and the recipe."""
    shared = [*_manifest("base/namespace.yaml"), *_manifest("base/environment.yaml")]
    run = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "casa-run"},
        "data": {Path(RECIPE).name: text},
    }
    for one in [*shared, run]:
        if one["kind"] != "Namespace":
            one["metadata"]["namespace"] = NAMESPACE
    return [*shared, run]


def ray_job(step: Step, images: Images, options: str = "") -> Object:
    """A step's RayJob, without a name: with the settings and the nodes of infra/kubernetes.

    Args:
        options: Further ones of the step's command.
    """
    [job] = _manifest("train/job.yaml")
    cluster = copy.deepcopy(_manifest("nodes/nodes.yaml")[0]["spec"])
    if step.kind in WITHOUT_GPUS:
        groups = cluster["workerGroupSpecs"]
        cluster["workerGroupSpecs"] = [one for one in groups if one["groupName"] != GPU_GROUP]
    named = {GPU_IMAGE: images.gpu, CPU_IMAGE: images.cpu}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            container["image"] = named[container["image"]]
            container["env"] = [{"name": "CASA_IMAGE", "value": container["image"]}]
    job["spec"]["entrypoint"] = f"{shlex.join(step.command(RECIPE))} {options}".rstrip()
    job["spec"]["rayClusterSpec"] = cluster
    job["metadata"] = {}
    return job


def _short(recipe: str) -> str:
    return f"casa-{recipe.lower().replace('_', '-')}"[:20].strip("-")


def _manifest(name: str) -> list[Object]:
    path = MANIFESTS / name
    if not path.is_file():
        raise ConfigError(
            f"There is no {path}.",
            "Nodes and images are those of this project's manifests, which are not installed with it here.",
            "Run this from a checkout, or in the project's image.",
        )
    # Through JSON: YAML's anchors would be written as such again.
    return json.loads(json.dumps(list(yaml.safe_load_all(path.read_text()))))


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and nothing as a reference."""

    def ignore_aliases(self, data: Any) -> bool:
        """Every value is written where it stands."""
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def dump(objects: Sequence[Object]) -> str:
    """Kubernetes objects as YAML."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
