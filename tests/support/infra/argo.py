"""The fields of Argo's Workflow that `casa export-dag` uses, as in its resource definition.

`tests/infra/kubernetes/test_definitions.py` holds these classes to the definition itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightkube.models.meta_v1 import ObjectMeta


@dataclass
class DagTask:
    name: str
    template: str | None = None
    depends: str | None = None


@dataclass
class DagTemplate:
    tasks: list[DagTask]


@dataclass
class ResourceTemplate:
    action: Literal["get", "create", "apply", "delete", "replace", "patch"]
    setOwnerReference: bool | None = None
    successCondition: str | None = None
    failureCondition: str | None = None
    manifest: str | None = None


@dataclass
class Template:
    name: str | None = None
    dag: DagTemplate | None = None
    resource: ResourceTemplate | None = None


@dataclass
class WorkflowSpec:
    entrypoint: str | None = None
    serviceAccountName: str | None = None
    templates: list[Template] | None = None


@dataclass
class Workflow:
    apiVersion: Literal["argoproj.io/v1alpha1"]
    kind: Literal["Workflow"]
    metadata: ObjectMeta
    spec: WorkflowSpec


KINDS = {"Workflow": Workflow}
