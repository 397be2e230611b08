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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
        name: What was checked.
        level: ``problem``: a run will not work. ``optional``: it works without.
        found: What was found.
        cost: What is missing without it, or what will fail.
        remedy: What to do about it.
    """

    name: str
    level: Level
    found: str
    cost: str = ""
    remedy: str = ""


def check_python(version: tuple[int, int, int]) -> Check:
    """Python's version against the oldest that works."""
    found = ".".join(map(str, version))
    if version[:2] >= PYTHON:
        return Check("Python", "ok", found)
    needed = ".".join(map(str, PYTHON))
    return Check("Python", "problem", found, "the project does not import", f"use Python {needed} or newer")


def check_package(name: str, version: str | None, cost: str) -> Check:
    """A package that every run needs."""
    if version is not None:
        return Check(name, "ok", version)
    return Check(name, "problem", "missing", cost, "pip install -e . -c constraints.txt")


def check_optional(name: str, version: str | None, cost: str, remedy: str) -> Check:
    """A package or program that only some things need."""
    return (
        Check(name, "ok", version)
        if version is not None
        else Check(name, "optional", "missing", cost, remedy)
    )


def check_device(gpus: list[str], cpus: int) -> Check:
    """GPUs that torch can use, or none."""
    if gpus:
        return Check("device", "ok", f"{len(gpus)} x {gpus[0]}")
    cost = "the quickstart needs no GPU; models of billions of parameters do"
    return Check(
        "device",
        "optional",
        f"no GPU, {cpus} CPU cores",
        cost,
        "install a CUDA build of torch on a GPU machine",
    )


def check_attention(chosen: str, tensors: str, obstacles: Mapping[str, str | None], has_gpu: bool) -> Check:
    """Which attention backend runs here.

    Args:
        chosen: The backend that ``auto`` takes.
        tensors: Type and device it is chosen for.
        obstacles: Backend → why it cannot run here; ``None`` where it can.
        has_gpu: Whether this machine has a GPU.
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
    if cpus >= 2:
        return Check("CPU cores", "ok", str(cpus))
    return Check(
        "CPU cores", "optional", str(cpus), "stages take turns: about twice the time", "use two cores or more"
    )


def check_memory(total_bytes: int, available_bytes: int) -> Check:
    """Memory against the quickstart's peak."""
    found = f"{available_bytes / GIB:.1f} GiB free of {total_bytes / GIB:.1f} GiB"
    if available_bytes >= MEMORY_GIB * GIB:
        return Check("memory", "ok", found)
    cost = f"the quickstart peaks below {MEMORY_GIB:.0f} GiB; less may end a worker"
    return Check("memory", "optional", found, cost, "close programs, or --set where.parallel_stages=1")


def check_disk(folder: Path, free_bytes: int) -> Check:
    """Free disk where artifacts go."""
    found = f"{free_bytes / GIB:.1f} GiB free at {folder}"
    if free_bytes >= DISK_GIB * GIB:
        return Check("disk", "ok", found)
    cost = f"a run keeps up to {DISK_GIB:.0f} GiB of artifacts, checkpoints and logs"
    return Check("disk", "problem", found, cost, "free some, or --set where.store=/another/disk")


def check_shared_memory(free_bytes: int | None) -> Check:
    """Shared memory for Ray's object store; ``None`` where the system has no such folder."""
    if free_bytes is None or free_bytes >= SHARED_MEMORY_GIB * GIB:
        return Check(
            "shared memory", "ok", "not needed" if free_bytes is None else f"{free_bytes / GIB:.1f} GiB"
        )
    cost = "Ray keeps its object store in a file instead, which is slower"
    remedy = "give /dev/shm more (Docker: --shm-size=1g), or lower where.ray.object_store_mb"
    return Check("shared memory", "optional", f"{free_bytes / GIB:.2f} GiB", cost, remedy)


def check_temporary_folder(path: str) -> Check:
    """Length of the temporary folder's path: Ray's sockets lie below it."""
    if len(path) <= 22 or os.path.isdir("/tmp"):
        return Check("temporary folder", "ok", path)
    cost = "the paths of Ray's sockets would pass 107 characters"
    return Check("temporary folder", "problem", path, cost, "set TMPDIR to a shorter path")


def check_port(port: int, is_free: bool) -> Check:
    """The endpoint's port."""
    if is_free:
        return Check(f"port {port}", "ok", "free")
    cost = "the endpoint cannot listen there, unless what does is an earlier run of it"
    return Check(f"port {port}", "optional", "in use", cost, "casa stop, or --set where.serve.port=8001")


def run_checks(store: Path = Path("runs"), port: int = 8000) -> list[Check]:
    """Check this machine. Imports torch for the device, which takes seconds."""
    import psutil

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    limit = _memory_limit()
    nearest = next(folder for folder in [store.absolute(), *store.absolute().parents] if folder.is_dir())
    shared = Path("/dev/shm")
    packages = [check_package(label, _version(name), cost) for label, name, cost in _NEEDED]
    return [
        check_python(sys.version_info[:3]),
        *packages,
        check_device(_gpus(), cpus),
        check_cpus(cpus),
        check_memory(min(memory.total, limit), min(memory.available, limit)),
        check_disk(nearest, shutil.disk_usage(nearest).free),
        check_shared_memory(shutil.disk_usage(shared).free if shared.is_dir() else None),
        check_temporary_folder(tempfile.gettempdir()),
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


def _memory_limit() -> int:
    """The container's memory limit, or something larger than any memory."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return sys.maxsize
    return int(text) if text.isdigit() else sys.maxsize


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
