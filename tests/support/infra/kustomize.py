"""What `kubectl kustomize` makes of a folder, by features that infra/kubernetes uses; others are refused.

Written from Kustomize's documentation; where `kubectl` is installed a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "components", "patches", "images", "replacements"),
    *("configMapGenerator", "generatorOptions"),
}
CLUSTER_SCOPED = {"Namespace"}
LOCAL = "config.kubernetes.io/local-config"


def render(folder: Path) -> list[Object]:
    """The objects that `kubectl apply -k FOLDER` sends.

    Raises:
        ValueError: The folder uses a feature that this does not know.
    """
    objects: list[Object] = []
    _accumulate(folder, objects)
    return objects


def _accumulate(folder: Path, objects: list[Object]) -> None:
    """Add a folder's own resources; a component also changes those that are there already."""
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := settings.keys() - KNOWN:
        raise ValueError(f"{folder}/kustomization.yaml uses {sorted(unknown)}, which are not rendered here.")
    for name in settings.get("resources", ()):
        path = folder / name
        if path.is_dir():
            _accumulate(path, objects)
        else:
            objects += [_copy(one) for one in yaml.safe_load_all(path.read_text())]
    for name in settings.get("components", ()):
        _accumulate(folder / name, objects)
    objects += _config_maps(folder, settings)
    for patch in settings.get("patches", ()):
        operations = yaml.safe_load(patch.get("patch") or (folder / patch["path"]).read_text())
        for one in _selected(objects, patch["target"]):
            for operation in operations:
                _apply(one, operation)
    for one in objects:
        if "namespace" in settings and one["kind"] not in CLUSTER_SCOPED:
            one["metadata"]["namespace"] = settings["namespace"]
        for container in _containers(one):
            container["image"] = _image(container["image"], settings.get("images", ()))
    for replacement in settings.get("replacements", ()):
        _replace(objects, replacement)
    objects[:] = [one for one in objects if LOCAL not in one["metadata"].get("annotations", {})]


def _copy(value: Any) -> Any:
    """A copy in which nothing is shared, as two uses of one YAML anchor are."""
    return json.loads(json.dumps(value))


def _config_maps(folder: Path, settings: Object) -> Iterator[Object]:
    for generator in settings.get("configMapGenerator", ()):
        if not settings.get("generatorOptions", {}).get("disableNameSuffixHash"):
            raise ValueError(f"{folder}: names with a hash of the content are not rendered here.")
        data = {name: (folder / name).read_text() for name in generator["files"]}
        metadata = {"name": generator["name"]}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _selected(objects: list[Object], target: Object) -> list[Object]:
    return [
        one
        for one in objects
        if target["kind"] == one["kind"]
        and target.get("name", one["metadata"]["name"]) == one["metadata"]["name"]
    ]


def _apply(document: Object, operation: Object) -> None:
    """One operation of RFC 6902."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
    at: Any = document
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at[part]
    value = _copy(operation.get("value"))
    kind = operation["op"]
    if isinstance(at, list):
        index = len(at) if last == "-" else int(last)
        if kind == "add":
            at.insert(index, value)
        elif kind == "remove":
            del at[index]
        else:
            at[index] = value
        return
    if kind != "add" and last not in at:
        raise ValueError(f"There is no {operation['path']} to {kind}.")
    if kind == "remove":
        del at[last]
    else:
        at[last] = value


def _containers(value: Any) -> Iterator[Object]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("containers", "initContainers"):
                yield from inner
            yield from _containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _containers(inner)


def _image(image: str, images: Any) -> str:
    name, _, tag = image.partition(":")
    for one in images:
        if one["name"] == name:
            return f"{one.get('newName', name)}:{one.get('newTag', tag)}"
    return image


def _replace(objects: list[Object], replacement: Object) -> None:
    [source] = _selected(objects, replacement["source"])
    value = source[replacement["source"]["fieldPath"]]
    for target in replacement["targets"]:
        for one in _selected(objects, target["select"]):
            for path in target["fieldPaths"]:
                *parents, last = path.split(".")
                at = one
                for part in parents:
                    at = at[part]
                at[last] = _copy(value)
