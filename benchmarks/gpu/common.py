"""What the GPU checks share: models of the real sizes, clocks that wait for the device, results as files.

Everything runs on a CPU too, at ``--scale tiny``, where it measures nothing but that it runs.

Shape suffixes: P patches, E values of a patch, N image tokens, C width.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers.models.helium import HeliumConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from casa_core.backbones.published import helium1_2b_text, qwen2_5_vl_3b_text, qwen2_5_vl_3b_vision
from casa_core.config import CasaConfig, FusionConfig, TextConfig
from casa_core.model import CasaForConditionalGeneration

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
Backbone = Literal["helium", "qwen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how large.

    Attributes:
        device: ``cuda`` or ``cpu``.
        dtype: Of weights and activations.
        tiny: Toy sizes, to see that everything runs.
        seconds: A measurement that can stop early does so after this time.
        results: Where JSON goes.
    """

    device: torch.device
    dtype: torch.dtype
    tiny: bool = False
    seconds: float = 180.0
    results: Path = RESULTS

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget_peak(self) -> None:
        """Start counting peak memory anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self, beyond: int = 0) -> float | None:
        """Most memory allocated since :meth:`forget_peak`, less so many bytes; a CPU does not count it."""
        if self.device.type != "cuda":
            return None
        return round((torch.cuda.max_memory_allocated(self.device) - beyond) / 2**30, 3)

    def machine(self) -> str:
        """The device, torch and transformers in a line."""
        name = platform.machine()
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"

    def taken(self, command: Callable[[], object]) -> float:
        """Seconds of a command, with the device idle before and after."""
        self.wait()
        began = time.perf_counter()
        command()
        self.wait()
        return time.perf_counter() - began

    def median(self, command: Callable[[], object], rounds: int) -> float:
        """Median seconds of a command after two warm-ups."""
        for _ in range(2):
            command()
        return statistics.median(self.taken(command) for _ in range(rounds))


def text_config(backbone: Backbone, setting: Setting, **changes: Any) -> TextConfig:
    """A backbone's published configuration, or a toy with the same kinds of everything."""
    if not setting.tiny:
        config: TextConfig = helium1_2b_text() if backbone == "helium" else qwen2_5_vl_3b_text()
        for name, value in changes.items():
            setattr(config, name, value)
        return config
    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if backbone == "helium":
        return HeliumConfig(**sizes | changes, head_dim=16, tie_word_embeddings=False)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLTextConfig(**sizes | changes | {"rope_parameters": rope, "tie_word_embeddings": True})


def vision_config(setting: Setting) -> Qwen2_5_VLVisionConfig:
    """Qwen2.5-VL's tower, which serves both backbones, or a toy of it."""
    if not setting.tiny:
        return qwen2_5_vl_3b_vision()
    return Qwen2_5_VLVisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=64,
        fullatt_block_indexes=[1],
    )


def build(
    backbone: Backbone, fusion: Mapping[str, Any], setting: Setting, *, tower: bool = True, **changes: Any
) -> CasaForConditionalGeneration:
    """A model with random weights, made on its device in its type, in evaluation mode.

    Args:
        backbone: Whose sizes.
        fusion: Fields of :class:`FusionConfig`.
        setting: Device, type, scale.
        tower: With the vision tower; otherwise image tokens are handed in as they are.
        changes: Fields of the text configuration that differ.
    """
    config = CasaConfig(
        text_config=text_config(backbone, setting, **changes),
        vision_config=vision_config(setting) if tower else None,
        fusion=FusionConfig(**fusion),
    )
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(setting.dtype)
    try:
        with setting.device:
            model = CasaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    if not tower:
        model.vision_tower = GivenTokens()  # pyright: ignore[reportAttributeAccessIssue]
        model.config.vision_config.spatial_merge_size = 1
    model.initialize_fusion()
    return model.eval()


class GivenTokens(nn.Module):
    """A tower that hands its "patches" (N, C) on as image tokens."""

    def forward(self, patches_PE: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        """(N, C) → (N, C)."""
        return patches_PE


@dataclass(frozen=True, slots=True)
class Frame:
    """A random picture of ``side`` pixels as the tower takes it: noise, on the device already."""

    patches_PE: torch.Tensor
    grid: tuple[int, int]
    tokens: int

    @classmethod
    def of(cls, model: CasaForConditionalGeneration, side: int, setting: Setting) -> Frame:
        """``side``: pixels; rounded to whole image tokens."""
        vision: Any = model.config.vision_config
        merge, patch = vision.spatial_merge_size, vision.patch_size
        rows = side // (patch * merge) * merge
        values = 3 * vision.temporal_patch_size * patch**2
        patches_PE = torch.randn(rows * rows, values, device=setting.device, dtype=setting.dtype)
        return cls(patches_PE, (rows, rows), (rows // merge) ** 2)


def tokens(count: int, model: CasaForConditionalGeneration) -> list[int]:
    """Random ids."""
    return torch.randint(10, model.config.text_config.vocab_size, (count,)).tolist()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in float64."""
    found, expected = found.double(), expected.double().to(found.device)
    return float((found - expected).norm() / expected.norm())


def copy_bandwidth(setting: Setting) -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.empty(2**20 if setting.tiny else 2**32, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / setting.median(lambda: target.copy_(source), 10)


@contextmanager
def freed(setting: Setting) -> Iterator[None]:
    """Give the allocator's memory back afterwards, so that the next model starts from nothing."""
    try:
        yield
    finally:
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def record(name: str, entry: str, found: Mapping[str, Any], setting: Setting) -> Path:
    """Put one entry's numbers into ``<date>-<name>.json``, beside the entries that are there."""
    setting.results.mkdir(parents=True, exist_ok=True)
    path = setting.results / f"{date.today().isoformat()}-{name}.json"
    entries = json.loads(path.read_text())["entries"] if path.exists() else {}
    described = {"machine": setting.machine(), "dtype": str(setting.dtype), "tiny": setting.tiny}
    entries[entry] = described | dict(found)
    path.write_text(json.dumps({"check": name, "entries": entries}, indent=1, default=_plain) + "\n")
    print(f"{name} / {entry}: {json.dumps(dict(found), default=_plain)}")
    return path


def _plain(value: Any) -> Any:
    return (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else str(value)
    )
