"""The doctor: verdicts from facts, and what each missing part costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from infra import doctor
from infra.doctor import GIB, Check
from pipelines.cli.app import app


@pytest.mark.parametrize(
    ("check", "level"),
    [
        (doctor.check_python((3, 11, 0)), "ok"),
        (doctor.check_python((3, 10, 9)), "problem"),
        (doctor.check_package("torch", "2.13.0", "no model"), "ok"),
        (doctor.check_package("torch", None, "no model"), "problem"),
        (doctor.check_optional("flash-attn", None, "slower", "install it"), "optional"),
        (doctor.check_names({"casa": ["casa"], "serve": ["casa", "casa"], "infra": []}), "ok"),
        (doctor.check_names({"casa": ["casa"], "serve": ["casa", "serve"]}), "problem"),
        (doctor.check_device([], 2), "optional"),
        (doctor.check_device(["H200", "H200"], 2), "ok"),
        (doctor.check_attention("padded", "fp32 on cpu", {"padded": None, "flash": "no GPU"}, False), "ok"),
        (doctor.check_attention("flash", "bf16 on cuda", {"padded": None, "flash": None}, True), "ok"),
        (doctor.check_attention("padded", "bf16 on cuda", {"flash": "not there"}, True), "optional"),
        (doctor.check_cpus(1), "optional"),
        (doctor.check_memory(16 * GIB, 12 * GIB), "ok"),
        (doctor.check_memory(16 * GIB, 4 * GIB), "optional"),
        (doctor.check_disk(Path("/"), 100 * GIB, True), "ok"),
        (doctor.check_disk(Path("/"), 100 * GIB, False), "problem"),
        (doctor.check_disk(Path("/"), GIB, True), "problem"),
        (doctor.check_shared_memory(64 * 2**20), "optional"),
        (doctor.check_shared_memory(None), "ok"),
        (doctor.check_port(8000, is_free=False), "optional"),
        (doctor.check_ray_disk("/tmp", 0.90, 0.95), "ok"),
        (doctor.check_ray_disk("/tmp", 0.96, 0.95), "optional"),
        (doctor.check_home("/home/casa", is_writable=False), "optional"),
        (doctor.check_default_folder("/tmp/ray", is_writable=True), "ok"),
        (doctor.check_default_folder("/tmp/ray", is_writable=False), "optional"),
        (doctor.check_default_folder("/scratch/allocations/of/somebody/ray", is_writable=True), "ok"),
        (
            doctor.check_default_folder("/scratch/allocations/of/somebody/else/ray", is_writable=True),
            "optional",
        ),
        (doctor.check_temporary_folder("/tmp", "/tmp", is_writable=True), "ok"),
        (
            doctor.check_temporary_folder("/very/long/path/of/an/allocation", "/tmp", is_writable=False),
            "problem",
        ),
    ],
)
def test_a_fact_gets_its_verdict(check: Check, level: str):
    assert check.level == level
    if level != "ok":
        assert check.cost
        assert check.remedy


def test_attention_names_the_backend_chosen_the_others_that_can_run_and_why_the_rest_cannot():
    obstacles = {"reference": None, "padded": None, "varlen": None, "flash": "flash_attn is missing"}
    check = doctor.check_attention("varlen", "bf16 on cuda", obstacles, has_gpu=True)
    assert check.found == "varlen for bf16 on cuda; can be forced: reference, padded"
    assert check.cost == "flash: flash_attn is missing"


def test_this_machine_can_be_checked(tmp_path: Path):
    checks = {check.name: check for check in doctor.run_checks(tmp_path / "not" / "yet")}
    assert checks["Python"].level == "ok"
    assert checks["Ray"].level == "ok"
    assert {"torch", "DeepSpeed", "device", "memory", "disk", "flash-attn", "PyAV (FFmpeg)"} <= checks.keys()


def test_a_disk_that_ray_counts_as_full_and_a_home_that_cannot_be_written_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_local_fs_capacity_threshold", "0.01")
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nobody")
    checks = {check.name: check for check in doctor.run_checks(tmp_path)}
    for name in ("disk of Ray", "home folder", "Ray's folder"):
        assert checks[name].level == "optional"
    assert "beyond 1%" in checks["disk of Ray"].cost


def test_the_command_says_which_attention_runs_on_this_machine(tmp_path: Path):
    result = CliRunner().invoke(app, ["doctor", "--json", "--store", str(tmp_path)])
    attention = next(check for check in json.loads(result.stdout) if check["name"] == "attention")
    assert "can be forced: reference" in attention["found"]
    if not torch.cuda.is_available():
        assert attention["found"].startswith("padded for fp32 on cpu")
        assert "varlen: It runs on CUDA devices" in attention["cost"]
