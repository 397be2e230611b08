"""In what environment something is made: code, packages, image, GPUs, nodes; and what sets two apart.

Nothing of it decides a fingerprint: it is recorded beside a result, to explain later why another differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from infra.code_package import PACKAGES
from infra.quota import usable_cpus

IMAGE = "CASA_IMAGE"
"""Environment variable that names the container's image: set by our Dockerfile and manifests."""
DECISIVE_PACKAGES = frozenset(
    {"torch", "transformers", "ray", "deepspeed", "pyarrow", "tokenizers", "numpy", "av", "pillow"}
)
"""Packages whose version can change a result's bytes."""
ABSENT = "absent"
GPU_ANSWER_S = 30.0
"""Seconds that a node with GPUs has to describe them."""


def environment(root: Path) -> dict[str, Any]:
    """The environment of this process, as JSON.

    Args:
        root: The checkout, or folder, that the project's code runs from.

    Returns:
        ``host``, ``platform``, ``python``; ``packages``: every installed one, name → version; ``git_commit``
        (with ``+`` for local changes) and ``git_diff``, their SHA-256; ``source_digest`` of the project's
        files; ``image``; ``gpus``, ``driver`` and ``cuda``; ``nodes``: how many of which CPUs and GPUs, of
        the Ray cluster that this process has joined, else of this machine. ``None`` for what is not there.
    """
    return {**software(root), **topology()}


def software(root: Path) -> dict[str, Any]:
    """The part of :func:`environment` that no cluster and no GPU is asked for: all before ``gpus``."""
    commit, diff = _git(root)
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": installed_packages(),
        "git_commit": commit,
        "git_diff": diff,
        "source_digest": source_digest(root),
        "image": os.environ.get(IMAGE) or None,
    }


def installed_packages() -> dict[str, str]:
    """Name → version of every package that Python finds, by the names of their folders."""
    found: dict[str, str] = {}
    for place in sys.path:
        folder = Path(place or ".")
        for path in sorted(folder.glob("*.dist-info")) if folder.is_dir() else ():
            name, _, version = path.stem.partition("-")
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return dict(sorted(found.items()))


@cache
def source_digest(root: Path) -> str:
    """SHA-256 over the names and bytes of the project's files, as of this process's start."""
    digest = hashlib.sha256()
    for top in PACKAGES:
        for path in sorted((root / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                own = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root).as_posix()} {own}\n".encode())
    return digest.hexdigest()


def _git(root: Path) -> tuple[str | None, str | None]:
    """Commit of a checkout, with ``+`` for local changes, and the SHA-256 of these; else ``None``."""
    commit = _output(["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"], root)
    if commit is None or not commit.endswith("+"):
        return commit, None
    diff = _output(["git", "diff", "HEAD", "--binary"], root)
    return commit, None if diff is None else hashlib.sha256(diff.encode()).hexdigest()


def _output(command: list[str], folder: Path) -> str | None:
    """What a program prints; ``None`` where it is not there, or fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def local_gpus() -> dict[str, Any]:
    """This machine's ``gpus`` (their names, in order), their ``driver``, and the ``cuda`` that torch has."""
    gpus: dict[str, Any] = {"gpus": [], "driver": None, "cuda": _torch_cuda()}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        rows = [line.rpartition(", ") for line in (_output(query, Path("/")) or "").splitlines()]
        gpus |= {"gpus": [name for name, _, _ in rows], "driver": rows[0][2] if rows else None}
    return gpus


def _torch_cuda() -> str | None:
    """The CUDA that the installed torch was built for, without importing it."""
    for place in sys.path:
        path = Path(place or ".") / "torch" / "version.py"
        if path.is_file():
            found = re.search(r"^cuda.*= '([\d.]+)'", path.read_text(), re.MULTILINE)
            return found[1] if found else None
    return None


def topology() -> dict[str, Any]:
    """``nodes`` of the cluster that this process has joined, else this machine, and the GPUs of one."""
    ray, local = sys.modules.get("ray"), local_gpus()
    if ray is None or not ray.is_initialized():
        return {**local, "nodes": [{"count": 1, "cpus": usable_cpus(), "gpus": len(local["gpus"])}]}
    alive = [node for node in ray.nodes() if node["Alive"]]
    sizes = Counter(
        (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in alive
    )
    nodes = [{"count": count, "cpus": cpus, "gpus": gpus} for (cpus, gpus), count in sorted(sizes.items())]
    with_gpus = [node["NodeID"] for node in alive if node["Resources"].get("GPU")]
    return {**(_gpus_of(with_gpus[0]) if with_gpus and not local["gpus"] else local), "nodes": nodes}


def _gpus_of(node: str) -> dict[str, Any]:
    """As :func:`local_gpus`, of another node; without names where it does not answer."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    asked = ray.remote(num_cpus=0)(local_gpus).options(scheduling_strategy=there).remote()
    try:
        return ray.get(asked, timeout=GPU_ANSWER_S)
    except RayError as error:  # the node went with the stage's end; the result stands
        print(f"The GPUs of node {node[:12]} are not recorded: {error}", file=sys.stderr, flush=True)
        return {"gpus": [], "driver": None, "cuda": None}


@dataclass(frozen=True, slots=True)
class Difference:
    """A part of an environment that is not as it was.

    Attributes:
        name: Such as ``package torch``.
        recorded, present: As text; ``absent`` where there is none.
        remedy: How to have the recorded one again.
        is_decisive: Whether it can change a result, beyond rounding.
    """

    name: str
    recorded: str
    present: str
    remedy: str
    is_decisive: bool


def differences(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[Difference]:
    """What sets an environment apart from a recorded one, the decisive first.

    What either does not hold is not compared, as in the record of an earlier version of this project; nor is
    the host's name.
    """
    found = [*_code(recorded, present), *_packages(recorded, present)]
    remedies = {
        "python": "Use Python {}.",
        "image": "Run in the image {}.",
        "gpus": "Run on the same GPUs: {}.",
        "cuda": "Install torch built for CUDA {}.",
        "driver": "Install NVIDIA's driver {}; another rarely changes a result.",
        "platform": "Run on {}; libraries of the system rarely change a result.",
        "nodes": "Run on {}; the number of workers changes sums by their rounding.",
    }
    for name, remedy in remedies.items():
        if name in recorded and name in present and recorded[name] != present[name]:
            before, after = (_text(name, one.get(name)) for one in (recorded, present))
            is_decisive = name in ("image", "gpus", "cuda") or (
                name == "python" and before.split(".")[:2] != after.split(".")[:2]
            )
            remedy = "Run outside of an image." if before == ABSENT and name == "image" else remedy
            found.append(Difference(name, before, after, remedy.format(before), is_decisive))
    return sorted(found, key=lambda one: not one.is_decisive)


def _code(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[Difference]:
    """The code, by its files where they were recorded, otherwise by its commit."""
    by = "source_digest" if "source_digest" in recorded else "git_commit"
    if by not in recorded or recorded[by] == present.get(by):
        return []
    before, after = (one.get("git_commit") or str(one.get(by))[:12] for one in (recorded, present))
    remedy = (
        f"`git checkout {before.rstrip('+')}` has it." if recorded.get("git_commit") else "Use its image."
    )
    if before.endswith("+"):
        remedy += (
            f" It had changes that no commit holds: SHA-256 {str(recorded.get('git_diff'))[:12]} of them."
        )
    return [Difference("code", before, after, remedy, True)]


def _packages(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[Difference]:
    before, after = recorded.get("packages", {}), present.get("packages", {})
    names = before.keys() | (after.keys() if "source_digest" in recorded else ())  # earlier records hold few
    return [
        Difference(
            f"package {name}",
            before.get(name, ABSENT),
            after.get(name, ABSENT),
            f"`pip install {name}=={before[name]}`" if name in before else f"`pip uninstall {name}`",
            name in DECISIVE_PACKAGES,
        )
        for name in sorted(names)
        if before.get(name) != after.get(name)
    ]


def _text(name: str, value: Any) -> str:
    if not value:
        return ABSENT
    if name == "nodes":
        return ", ".join(f"{one['count']} x ({one['cpus']} CPUs, {one['gpus']} GPUs)" for one in value)
    if name == "gpus":
        return ", ".join(f"{count} x {gpu}" for gpu, count in Counter(value).items())
    return value if isinstance(value, str) else json.dumps(value)
