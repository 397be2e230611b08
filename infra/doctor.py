"""Checks of this machine: what a run needs, what is missing, and what each missing part costs.

``check_…`` are pure functions from facts to a verdict; ``run_checks`` gathers the facts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.code_package import PACKAGES
from infra.local_ray import LONGEST_BASE, base_of_temporary_folder
from infra.quota import memory_limit, usable_cpus

Level = Literal["ok", "optional", "problem"]
GIB = 2**30
PYTHON = (3, 11)
MEMORY_GIB = 8.0
DISK_GIB = 5.0
SHARED_MEMORY_GIB = 0.3


@dataclass(frozen=True, slots=True)
class Check:
    """One verdict.

    Attributes:
        level: ``problem``: a run will not work. ``optional``: it works without.
        cost: What is missing without it, or what will fail.
    """

    name: str
    level: Level
    found: str
    cost: str = ""
    remedy: str = ""


def _check(name: str, is_ok: bool, found: str, level: Level, cost: str, remedy: str) -> Check:
    """``ok``, or ``level`` with its cost and remedy."""
    return Check(name, "ok", found) if is_ok else Check(name, level, found, cost, remedy)


def check_python(version: tuple[int, int, int]) -> Check:
    """Python's version against the oldest that works."""
    found, needed = (".".join(map(str, numbers)) for numbers in (version, PYTHON))
    remedy = f"use Python {needed} or newer"
    return _check("Python", version[:2] >= PYTHON, found, "problem", "the project does not import", remedy)


def check_package(name: str, version: str | None, cost: str) -> Check:
    """A package that every run needs."""
    remedy = "pip install -e . -c constraints.txt"
    return _check(name, version is not None, version or "missing", "problem", cost, remedy)


def check_optional(name: str, version: str | None, cost: str, remedy: str) -> Check:
    """A package or program that only some things need."""
    return _check(name, version is not None, version or "missing", "optional", cost, remedy)


def check_names(owners: Mapping[str, Sequence[str]]) -> Check:
    """This project's packages against other distributions that hold one of the same name.

    Args:
        owners: Package → the distributions that hold files of it.
    """
    shared = {name: sorted(each) for name, each in owners.items() if len(set(each)) > 1}
    found = "; ".join(f"{name}: {', '.join(each)}" for name, each in shared.items()) or "casa's alone"
    cost = "the one installed last has overwritten files of the other, and removing either removes them"
    remedy = "install casa into a virtual environment of its own"
    return _check("package names", not shared, found, "problem", cost, remedy)


def check_device(gpus: list[str], cpus: int) -> Check:
    """GPUs that torch can use, or none."""
    found = f"{len(gpus)} x {gpus[0]}" if gpus else f"no GPU, {cpus} CPU cores"
    cost = "the quickstart needs no GPU; models of billions of parameters do"
    remedy = "install a CUDA build of torch on a GPU machine"
    return _check("device", bool(gpus), found, "optional", cost, remedy)


def check_attention(chosen: str, tensors: str, obstacles: Mapping[str, str | None], has_gpu: bool) -> Check:
    """Which attention backend runs here.

    Args:
        chosen: The backend that ``auto`` takes.
        tensors: Type and device it is chosen for.
        obstacles: Backend → why it cannot run here; ``None`` where it can.
    """
    able = [name for name, why in obstacles.items() if why is None and name != chosen]
    found = f"{chosen} for {tensors}; can be forced: {', '.join(able)}"
    unable = " ".join(f"{name}: {why}" for name, why in obstacles.items() if why is not None)
    if not has_gpu or chosen != "padded":
        return Check("attention", "ok", found, unable)
    remedy = "install torch 2.10 or newer for CUDA, or flash-attn"
    return Check("attention", "optional", found, f"long sequences are slower without: {unable}", remedy)


def check_cpus(cpus: int) -> Check:
    """Cores against the two that the quickstart's times are given for."""
    cost = "stages take turns: about twice the time"
    return _check("CPU cores", cpus >= 2, str(cpus), "optional", cost, "use two cores or more")


def check_memory(total_bytes: int, available_bytes: int) -> Check:
    """Memory against the quickstart's peak."""
    found = f"{available_bytes / GIB:.1f} GiB free of {total_bytes / GIB:.1f} GiB"
    cost = f"the quickstart peaks below {MEMORY_GIB:.0f} GiB; less may end a worker"
    remedy = "close programs, or --set where.parallel_stages=1"
    return _check("memory", available_bytes >= MEMORY_GIB * GIB, found, "optional", cost, remedy)


def check_disk(folder: Path, free_bytes: int, is_writable: bool) -> Check:
    """Free disk where artifacts go, and whether they may."""
    if not is_writable:
        remedy = "make it writable, or --set where.store=/another/folder"
        return Check(
            "disk", "problem", f"{folder} cannot be written", "every stage keeps its artifact there", remedy
        )
    found = f"{free_bytes / GIB:.1f} GiB free at {folder}"
    cost = f"a run keeps up to {DISK_GIB:.0f} GiB of artifacts, checkpoints and logs"
    remedy = "free some, or --set where.store=/another/disk"
    return _check("disk", free_bytes >= DISK_GIB * GIB, found, "problem", cost, remedy)


def check_shared_memory(free_bytes: int | None) -> Check:
    """Shared memory for Ray's object store; ``None`` where the system has no such folder."""
    if free_bytes is None or free_bytes >= SHARED_MEMORY_GIB * GIB:
        return Check(
            "shared memory", "ok", "not needed" if free_bytes is None else f"{free_bytes / GIB:.1f} GiB"
        )
    cost = "Ray keeps its object store in a file instead, which is slower"
    remedy = "give /dev/shm more (Docker: --shm-size=1g), or lower where.ray.object_store_mb"
    return Check("shared memory", "optional", f"{free_bytes / GIB:.2f} GiB", cost, remedy)


def check_temporary_folder(path: str, for_ray: str, is_writable: bool) -> Check:
    """The temporary folder, and the one that Ray's sockets lie below: another where the path is long."""
    found = path if path == for_ray else f"{path}, and {for_ray} for Ray"
    cost = f"Ray cannot make its folder in {for_ray}, and the paths of its sockets may have 107 characters"
    remedy = "set TMPDIR to a folder that can be written, with a path of at most 22 characters"
    return _check("temporary folder", is_writable, found, "problem", cost, remedy)


def check_ray_disk(folder: str, used_share: float, full_share: float) -> Check:
    """The disk of Ray's temporary folder, where its logs and spilled objects lie.

    Args:
        used_share, full_share: How much of the disk is used, and from where on Ray counts it as full.
    """
    found = f"{used_share:.0%} used at {folder}"
    cost = f"beyond {full_share:.0%} Ray spills no objects, and tasks whose objects do not fit memory fail"
    remedy = "free some, set TMPDIR to another disk (22 characters), or raise RAY_local_fs_capacity_threshold"
    return _check("disk of Ray", used_share < full_share, found, "optional", cost, remedy)


def check_default_folder(folder: str, is_writable: bool) -> Check:
    """Ray's own temporary folder: another user may have made it, or sockets' paths in it be too long."""
    is_short = len(folder) <= LONGEST_BASE + len("/casa-0123456789ab")
    cost = "`casa evaluate --workers` cannot start Ray; `casa run` can, as its head has a folder of its own"
    remedy = "set RAY_TMPDIR to a folder of yours with a path of at most 22 characters"
    return _check("Ray's folder", is_writable and is_short, folder, "optional", cost, remedy)


def check_home(home: str, is_writable: bool) -> Check:
    """The home folder, where caches and, for a store elsewhere, session files lie."""
    cost = "there are no copies of models, files of the hub, or session files of a store on S3"
    remedy = "set HOME, or XDG_CACHE_HOME, XDG_STATE_HOME and HF_HOME, to folders that can be written"
    return _check("home folder", is_writable, home, "optional", cost, remedy)


def check_port(port: int, is_free: bool) -> Check:
    """The endpoint's port."""
    found = "free" if is_free else "in use"
    cost = "the endpoint cannot listen there, unless what does is an earlier run of it"
    remedy = "casa stop, or --set where.serve.port=8001"
    return _check(f"port {port}", is_free, found, "optional", cost, remedy)


def run_checks(store: Path = Path("runs"), port: int = 8000) -> list[Check]:
    """Check this machine. Imports torch for the device, which takes seconds."""
    import psutil

    cpus, limit = usable_cpus(), memory_limit()
    memory = psutil.virtual_memory()
    nearest, default = _nearest(store), _default_folder()
    shared, home = Path("/dev/shm"), os.path.expanduser("~")
    temporary = base_of_temporary_folder()
    disk = shutil.disk_usage(temporary)
    packages = [check_package(label, _version(name), cost) for label, name, cost in _NEEDED]
    return [
        check_python(sys.version_info[:3]),
        *packages,
        check_names(_owners()),
        check_device(_gpus(), cpus),
        check_cpus(cpus),
        check_memory(min(memory.total, limit), min(memory.available, limit)),
        check_disk(nearest, shutil.disk_usage(nearest).free, _can_write(nearest)),
        check_shared_memory(shutil.disk_usage(shared).free if shared.is_dir() else None),
        check_temporary_folder(tempfile.gettempdir(), str(temporary), _can_write(str(temporary))),
        check_ray_disk(str(temporary), disk.used / (disk.used + disk.free), full_share()),
        check_default_folder(default, _can_write(_nearest(Path(default)))),
        check_home(home, _can_write(home)),
        check_port(port, _is_free(port)),
        *(check_optional(label, find(), cost, remedy) for label, find, cost, remedy in _OPTIONAL),
    ]


_NEEDED = [
    ("torch", "torch", "there is no model without it"),
    ("transformers", "transformers", "backbones, tokenizers and checkpoints need it"),
    ("Ray", "ray", "every stage is a Ray job"),
    ("DeepSpeed", "deepspeed", "training shards its optimiser with it"),
    ("PyArrow", "pyarrow", "datasets are Arrow and Parquet files"),
    ("PyAV (FFmpeg)", "av", "videos cannot be read; it brings FFmpeg along"),
]


def _owners() -> dict[str, list[str]]:
    """Which distributions hold files of packages that are called as this project's."""
    found = importlib.metadata.packages_distributions()
    return {name: found.get(name, []) for name in ("casa", *PACKAGES)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    return browser if browser and shutil.which("chromedriver") else None


_OPTIONAL: list[tuple[str, Callable[[], str | None], str, str]] = [
    (
        "easy-vqa",
        lambda: _version("easy-vqa"),
        "the quickstart has no pictures to learn from",
        "pip install -e '.[demo]'",
    ),
    (
        "Chromium and chromedriver",
        _chromium,
        "the tests of the live page are skipped; the page itself needs any browser",
        "apt-get install chromium chromium-driver",
    ),
    (
        "flash-attn",
        lambda: _version("flash-attn"),
        "nothing on a CPU; on a GPU, torch's own kernels are used, which are slower for long sequences",
        "pip install --no-build-isolation '.[gpu]', with CUDA and a compiler",
    ),
]


def _gpus() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def full_share() -> float:
    """Share of a disk from which Ray counts it as full; Ray's own default is 0.95.

    Source: ``local_fs_capacity_threshold`` of Ray's configuration, which its processes read from the
    environment.
    """
    return float(os.environ.get("RAY_local_fs_capacity_threshold", "0.95"))  # noqa: SIM112


def _default_folder() -> str:
    """Where Ray puts its files by default. Source: ``get_default_system_temp_dir`` of Ray 2.60."""
    names = ("RAY_TMPDIR", "TMPDIR")
    return os.path.join(next((os.environ[name] for name in names if name in os.environ), "/tmp"), "ray")


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())


def _can_write(folder: str | Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
