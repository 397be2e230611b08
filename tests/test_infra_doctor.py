"""The doctor: verdicts from facts, and what each missing part costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import doctor
from infra.doctor import GIB, Check


@pytest.mark.parametrize(
    ("check", "level"),
    [
        (doctor.check_python((3, 11, 0)), "ok"),
        (doctor.check_python((3, 10, 9)), "problem"),
        (doctor.check_package("torch", "2.13.0", "no model"), "ok"),
        (doctor.check_package("torch", None, "no model"), "problem"),
        (doctor.check_optional("flash-attn", None, "slower", "install it"), "optional"),
        (doctor.check_device([], 2), "optional"),
        (doctor.check_device(["H200", "H200"], 2), "ok"),
        (doctor.check_cpus(1), "optional"),
        (doctor.check_memory(16 * GIB, 12 * GIB), "ok"),
        (doctor.check_memory(16 * GIB, 4 * GIB), "optional"),
        (doctor.check_disk(Path("/"), 100 * GIB), "ok"),
        (doctor.check_disk(Path("/"), GIB), "problem"),
        (doctor.check_shared_memory(64 * 2**20), "optional"),
        (doctor.check_shared_memory(None), "ok"),
        (doctor.check_port(8000, is_free=False), "optional"),
    ],
)
def test_a_fact_gets_its_verdict(check: Check, level: str):
    assert check.level == level
    if level != "ok":
        assert check.cost
        assert check.remedy


def test_this_machine_can_be_examined(tmp_path: Path):
    checks = {check.name: check for check in doctor.examine(tmp_path / "not" / "yet")}
    assert checks["Python"].level == "ok"
    assert checks["Ray"].level == "ok"
    assert {"torch", "DeepSpeed", "device", "memory", "disk", "flash-attn", "PyAV (FFmpeg)"} <= checks.keys()
