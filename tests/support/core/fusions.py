"""The fusions that tests go through, every mechanism of the paper among them, and small models of each."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import torch

from casa_core.model import CasaForConditionalGeneration
from tests.support.core.models import BackboneName, exactly_in_float64, small_model

BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)
FUSIONS: dict[str, dict[str, Any]] = {
    "CA ⊕": {},
    "CA →": {"placement": "before"},
    "CA after": {"placement": "after"},
    "CA in one layer": {"layers": (1,)},
    "CA, shared projections": {"shared_projections": True},
    "CA, adaptive gate": {"gate": "adaptive_sigmoid"},
    "CA → as in Flamingo": {"placement": "before", "gate": "tanh", "image_norm": "own", "text_norm": "own"},
    "CA, image FFNs": {"image_ffn": True},
    "CA in the last of three layers, image FFNs": {"num_layers": 3, "layers": (2,), "image_ffn": True},
    "CA, raw image tokens": {"image_norm": "none"},
    "CA, global positions": {"positions": "global"},
    "CA after, shared, all else its own": {
        "placement": "after",
        "shared_projections": True,
        "gate": "adaptive_sigmoid",
        "image_ffn": True,
        "image_norm": "own",
        "text_norm": "own",
        "positions": "global",
    },
    "CASA ⊕": {"kind": "casa"},
    "CASA →": {"kind": "casa", "placement": "before"},
    "CASA after, own norms": {
        "kind": "casa",
        "placement": "after",
        "image_norm": "own",
        "text_norm": "own",
    },
    "CASA in one layer, gated": {"kind": "casa", "layers": (0,), "gate": "adaptive_sigmoid"},
    "CASA, global positions, tanh gate": {"kind": "casa", "positions": "global", "gate": "tanh"},
    "CASA, shared, image FFNs": {"kind": "casa", "shared_projections": True, "image_ffn": True},
    "CASA replacing": {"kind": "casa", "placement": "replace", "layers": (1,)},
    "CASA replacing two of three layers": {
        "kind": "casa",
        "placement": "replace",
        "layers": (0, 2),
        "num_layers": 3,
        "positions": "global",
        "image_ffn": True,
        "image_norm": "own",
    },
    "insertion": {"kind": "insertion"},
    "Q-Former": {"kind": "qformer", "qformer_queries": 3},
    "deep Q-Former": {"kind": "qformer", "qformer_queries": 2, "qformer_depth": 2},
}


@cache
def model_of(name: str, backbone: BackboneName, dtype: torch.dtype) -> CasaForConditionalGeneration:
    """One model for all tests of a fusion: leave its weights alone. In float64 it is exactly so."""
    model = small_model(dtype, backbone, **FUSIONS[name])
    return exactly_in_float64(model) if dtype == torch.float64 else model


def inserts(name: str) -> bool:
    return FUSIONS[name].get("kind") in ("insertion", "qformer")


def replaces(name: str) -> bool:
    """∨."""
    return FUSIONS[name].get("placement") == "replace"
