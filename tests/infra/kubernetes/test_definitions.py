"""The manifests, and what the tests know of KubeRay's kinds, against the resource definitions themselves.

The definitions are megabytes of other projects and not kept here. `CASA_CRDS` names a folder with those of
KubeRay (helm-chart/kuberay-operator/crds at v1.7.0), of the Prometheus operator
(example/prometheus-operator-crd at v0.93) and of Argo's Workflow (manifests/base/crds/full/
argoproj.io_workflows.yaml of August 2026); without it the tests below are skipped.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

pytest.importorskip("lightkube", reason="pip install -e '.[dev]' brings Kubernetes' types")
from pipelines.recipe import build_stages, load_recipe
from pipelines.workflows.argo import argo_workflow
from pipelines.workflows.kuberay import ray_jobs, read_images
from pipelines.workflows.steps import workflow_steps
from tests.infra.kubernetes.test_manifests import OVERLAYS, RENDERED
from tests.support.infra import argo, kuberay

CRDS = os.environ.get("CASA_CRDS")
needs_definitions = pytest.mark.skipif(CRDS is None, reason="CASA_CRDS names no folder of definitions")


@cache
def definitions() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in Path(CRDS or ".").glob("*.yaml"):
        definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
        version = definition["versions"][0]
        found[definition["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    return found


def strict(schema: Any) -> Any:
    """A schema that refuses unknown fields, as the API server does for `kubectl apply`."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    keeps = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and "properties" in schema and not keeps:
        made["additionalProperties"] = False
    return made


@needs_definitions
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_meets_its_definition(overlay: str):
    for one in RENDERED[overlay]:
        if one["kind"] in definitions():
            assert not [
                error.message for error in Draft4Validator(definitions()[one["kind"]]).iter_errors(one)
            ]


@needs_definitions
@pytest.mark.parametrize("write", [ray_jobs, argo_workflow])
def test_every_object_of_an_exported_recipe_meets_its_definition(write: Callable[..., str]):
    steps = workflow_steps(build_stages(load_recipe("quickstart")), with_endpoint=False)
    found = list(yaml.safe_load_all(write("quickstart", steps, "name: quickstart", read_images())))
    templates = [one for own in found if own["kind"] == "Workflow" for one in own["spec"]["templates"]]
    found += [yaml.safe_load(one["resource"]["manifest"]) for one in templates if "resource" in one]
    checked = [one for one in found if one["kind"] in definitions()]
    assert {one["kind"] for one in checked} >= {"RayJob"}
    for one in checked:
        assert not [error.message for error in Draft4Validator(definitions()[one["kind"]]).iter_errors(one)]


KINDS = kuberay.KINDS | argo.KINDS


@needs_definitions
@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_know_no_field_that_the_definition_lacks(kind: str):
    if kind not in definitions():
        pytest.skip(f"{CRDS} has no definition of {kind}")
    assert not list(missing(KINDS[kind], definitions()[kind], kind))


def missing(kind: Any, schema: dict[str, Any], where: str) -> typing.Iterator[str]:
    if dataclasses.is_dataclass(kind) and kind.__module__ in (kuberay.__name__, argo.__name__):
        hints = typing.get_type_hints(kind)
        required = set()
        for field in dataclasses.fields(kind):
            name = field.metadata.get("json", field.name)
            if name not in schema["properties"]:
                yield f"{where}.{name}"
                continue
            if field.default is dataclasses.MISSING:
                required.add(name)
            yield from missing(hints[field.name], schema["properties"][name], f"{where}.{name}")
        yield from (f"{where}.{name} is required" for name in set(schema.get("required", ())) - required)
    elif typing.get_origin(kind) is list:
        yield from missing(typing.get_args(kind)[0], schema["items"], where)
    elif typing.get_origin(kind) is typing.Literal:
        if "enum" in schema and not set(typing.get_args(kind)) <= set(schema["enum"]):
            yield f"{where}: {schema['enum']}"
    else:
        for one in typing.get_args(kind):
            if one is not type(None):
                yield from missing(one, schema, where)
