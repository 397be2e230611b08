"""GPUs by name: memory, its bandwidth and bf16 throughput, from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from casa_core.errors import ConfigError

USABLE = 0.92
"""Usable share of a GPU's memory: the driver, the context, collectives and fragmentation take the rest."""
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, from its maker's data sheet.

    Attributes:
        name: As recipes and commands write it.
        memory_gib: Total memory.
        bf16_tflops: Dense products, without sparsity, in 10^12 operations per second.
        bandwidth_gbs: Memory's, in 10^9 bytes per second.
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    bandwidth_gbs: float

    @property
    def usable_bytes(self) -> int:
        """Bytes available to tensors."""
        return int(self.memory_gib * USABLE * 2**30)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40", 40, 312, 1555),
        Gpu("A100", 80, 312, 2039),
        Gpu("L40S", 48, 362, 864),
        Gpu("H100", 80, 989, 3350),
        Gpu("H200", 141, 989, 4800),
        Gpu("B200", 180, 2250, 8000),
    )
}
DEFAULT_GPU = "H100"
PAPERS_DAYS = 3.0
"""Days that 64 H100 took for 100,000 steps from Helium1-2B (B.1)."""


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
