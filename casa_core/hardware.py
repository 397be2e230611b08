"""GPUs: what fits on one, and how fast it multiplies; and from that, how long a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass

from casa_core.errors import ConfigError

USABLE = 0.92
"""Of a GPU's memory: the driver, the context, collectives and fragmentation take the rest."""
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, from its maker's data sheet.

    Attributes:
        name: As users write it.
        memory_gib: In all.
        bf16_tflops: Dense products, without sparsity.
    """

    name: str
    memory_gib: float
    bf16_tflops: float

    @property
    def usable_bytes(self) -> int:
        """For tensors."""
        return int(self.memory_gib * USABLE * 2**30)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40", 40, 312),
        Gpu("A100", 80, 312),
        Gpu("L40S", 48, 362),
        Gpu("H100", 80, 989),
        Gpu("H200", 141, 989),
        Gpu("B200", 180, 2250),
    )
}
DEFAULT_GPU = "H100"
PAPERS_DAYS = 3.0
"""Of 64 H100 for 100,000 steps from Helium1-2B (B.1)."""


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, whatever its case.

    Raises:
        ConfigError: For an unknown one.
    """
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return gpu
    raise ConfigError(
        f"There is no GPU called {name!r} in the table.",
        f"Known: {', '.join(GPUS)}.",
        "Give one of them, or the closest in memory.",
    )


def peak_tflops(device_name: str) -> float | None:
    """The dense bf16 rate of a device by the name that CUDA gives it; ``None`` where it is not known."""
    for name, gpu in sorted(GPUS.items(), key=lambda entry: -len(entry[0])):
        if name.partition("-")[0].lower() in device_name.lower():
            return gpu.bf16_tflops
    return None
