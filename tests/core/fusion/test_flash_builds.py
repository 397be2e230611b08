"""Which build of FlashAttention torch's functions are routed to. No GPU: torch's own switch is replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch.nn import attention

from casa_core.fusion import backends
from casa_core.fusion.flash_builds import use_newest_flash

GPU = torch.device("cuda", 0)
Pretend = Callable[..., list[str]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """A GPU and what is installed beside it; the builds that were activated."""

    def pretend(*installed: str, capability: tuple[int, int] = (9, 0), broken: str = "") -> list[str]:
        activated: list[str] = []

        def activate(build: str) -> None:
            if build == broken:
                raise RuntimeError(f"{build} does not expose its kernels")
            if build not in installed:
                raise ImportError(f"no {build}")
            activated.append(build)

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(attention, "activate_flash_attention_impl", activate)
        use_newest_flash.cache_clear()
        return activated

    return pretend


@pytest.mark.parametrize(
    ("installed", "capability", "build"),
    [
        (("FA3", "FA4"), (9, 0), "FA3"),
        (("FA4",), (9, 0), "FA4"),
        (("FA3", "FA4"), (10, 0), "FA4"),
        (("FA3", "FA4"), (8, 0), "FA2"),
        (("FA3", "FA4"), (12, 0), "FA2"),
        ((), (9, 0), "FA2"),
    ],
)
def test_a_gpu_takes_the_best_build_that_is_installed_for_it(
    machine: Pretend, installed: tuple[str, ...], capability: tuple[int, int], build: str
):
    activated = machine(*installed, capability=capability)
    assert use_newest_flash(GPU) == build
    assert activated == ([] if build == "FA2" else [build])


def test_a_build_that_is_broken_is_named_and_the_next_one_is_taken(
    machine: Pretend, caplog: pytest.LogCaptureFixture
):
    machine("FA3", "FA4", broken="FA3")
    with caplog.at_level(logging.INFO, "casa.attention"):
        assert use_newest_flash(GPU) == "FA4"
    assert "FA3 is installed and cannot be used: FA3 does not expose its kernels" in caplog.text
    assert "attention runs on FA4 in this process" in caplog.text


def test_what_the_user_has_activated_stays(machine: Pretend, monkeypatch: pytest.MonkeyPatch):
    activated = machine("FA3", "FA4")
    monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: "own")
    assert use_newest_flash(GPU) == "own"
    assert not activated


def test_a_torch_without_builds_is_left_as_it_is(machine: Pretend, monkeypatch: pytest.MonkeyPatch):
    machine("FA3")
    monkeypatch.delattr(attention, "activate_flash_attention_impl")
    assert use_newest_flash(GPU) == "FA2"


@pytest.mark.parametrize("backend", ["auto", "varlen"])
def test_the_choice_of_varlen_routes_it(
    machine: Pretend, monkeypatch: pytest.MonkeyPatch, backend: backends.Backend
):
    activated = machine("FA3")
    monkeypatch.setattr(backends, "run_kernel", lambda name: None)
    backends.choose_backend.cache_clear()
    assert backends.choose_backend(backend, GPU, torch.bfloat16, 128) == "varlen"
    backends.choose_backend.cache_clear()
    assert activated == ["FA3"]


def test_this_torch_knows_both_builds():
    assert {"FA3", "FA4"} <= set(attention.list_flash_attention_impls())
