"""Names, in recipes and options, of the types in which weights are held and computed with."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
