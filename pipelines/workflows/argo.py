"""A recipe's steps as an Argo Workflow: each creates a RayJob, and follows it to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.workflows.kuberay import NAMESPACE, Images, Object, dump, ray_job, surroundings
from pipelines.workflows.steps import Step

ACCOUNT = "casa-workflow"
"""Service account of the workflow's pods."""
ENTRY = "run"


def argo_workflow(recipe: str, steps: Sequence[Step], text: str, images: Images) -> str:
    """Namespace, config maps, a service account that may create RayJobs, and the Workflow.

    For ``kubectl create -f``: each gets a name of its own.

    Args:
        recipe: Its name.
        text: The recipe's file.
    """
    tasks = [
        {"name": step.name, "template": step.name}
        | ({"depends": " && ".join(step.needs)} if step.needs else {})
        for step in steps
    ]
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"casa-{recipe.lower().replace('_', '-')}-", "namespace": NAMESPACE},
        "spec": {
            "entrypoint": ENTRY,
            "serviceAccountName": ACCOUNT,
            "templates": [
                {"name": ENTRY, "dag": {"tasks": tasks}},
                *(_template(step, images) for step in steps),
            ],
        },
    }
    return dump([*surroundings(text), *_account(), workflow])


def _template(step: Step, images: Images) -> dict[str, Any]:
    job = {**ray_job(step, images), "metadata": {"generateName": f"casa-{step.name}-"[:42]}}
    return {
        "name": step.name,
        "resource": {
            "action": "create",
            "setOwnerReference": True,
            "successCondition": "status.jobDeploymentStatus == Complete",
            "failureCondition": "status.jobDeploymentStatus == Failed",
            "manifest": dump([job]),
        },
    }


def _account() -> list[Object]:
    """An account that may create and watch RayJobs, and report on its pods."""
    metadata = {"name": ACCOUNT, "namespace": NAMESPACE}
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list", "watch"]},
        {
            "apiGroups": ["argoproj.io"],
            "resources": ["workflowtaskresults"],
            "verbs": ["create", "patch"],
        },
    ]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": dict(metadata)},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": dict(metadata), "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": dict(metadata),
            "roleRef": {"apiGroup": group, "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
        },
    ]
