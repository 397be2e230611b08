"""The two floors of everything else: how fast memory is copied, how fast matrices are multiplied."""

from __future__ import annotations

import torch

from benchmarks.gpu.common import Setting, copy_bandwidth, record, relative_error

LIMIT = {torch.bfloat16: 1e-2, torch.float32: 1e-3}  # fp32 products may run in TF32


def run(setting: Setting) -> None:
    """Check a small product against float64, then time both."""
    side = 512 if setting.tiny else 8192
    small = [torch.randn(256, 256, device=setting.device, dtype=setting.dtype) for _ in range(2)]
    error = relative_error(small[0] @ small[1], small[0].double() @ small[1].double())
    assert error < LIMIT[setting.dtype], f"matrix products are off by {error:.1e}"
    left, right = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = setting.median(lambda: torch.matmul(left, right, out=out), 20)
    found = {
        "copy_gb_s": round(copy_bandwidth(setting) / 1e9, 1),
        "matmul_tflop_s": round(2 * side**3 / seconds / 1e12, 2),
        "side": side,
        "product_error": error,
    }
    record("ceilings", "both", found, setting)
