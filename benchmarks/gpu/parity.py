"""Every attention backend and every fusion at the real head sizes, against float64.

Shape suffixes: Q/K tokens of a segment, T queries, N keys, H query heads, G key/value heads, D head size, B
rows, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.gpu.common import Backbone, Setting, build, freed, record, relative_error, tokens
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.errors import ConfigError
from casa_core.fusion.attention import Backend, Segments, segment_attention
from casa_core.model import CasaForConditionalGeneration

HEADS = {"Helium1-2B": (16, 8, 128), "Qwen2.5-VL-3B": (16, 2, 128), "vision tower": (16, 16, 80)}
ATTENTION_LIMIT = {torch.bfloat16: 1e-2, torch.float32: 2e-3}
MODEL_LIMIT = {torch.bfloat16: 2e-2, torch.float32: 5e-3}
"""Another picture moves the logits by 0.1 and more."""
FUSIONS: dict[str, dict[str, Any]] = {
    "CA": {},
    "CA, shared": {"shared_projections": True},
    "CA, image FFNs": {"image_ffn": True},
    "CA, gated": {"gate": "adaptive_sigmoid"},
    "CASA, parallel": {"kind": "casa"},
    "CASA, before": {"kind": "casa", "placement": "before"},
    "CASA, after": {"kind": "casa", "placement": "after"},
    "CASA, replace": {"kind": "casa", "placement": "replace", "layers": 2},
    "insertion": {"kind": "insertion"},
    "Q-Former": {"kind": "qformer", "qformer_queries": 32},
}


def run(setting: Setting) -> None:
    """Attention, then fusions, each on fresh random inputs."""
    torch.manual_seed(0)
    for backend in get_args(Backend):
        record("parity", f"attention: {backend}", _attention(backend, setting), setting)
    backbones: tuple[Backbone, ...] = ("helium", "qwen")
    for backbone in backbones:
        for name, fusion in FUSIONS.items():
            with freed(setting):
                found = _fusion(backbone, fusion, setting)
                record("parity", f"{backbone}: {name}", found, setting)


def _attention(backend: Backend, setting: Setting) -> dict[str, Any]:
    """Relative errors of windows with queries of their own (eq. 2) and as the last keys (eq. 3)."""
    images, texts = (
        ([16, 16, 0], [5, 3, 4]) if setting.tiny else ([1024] * 4 + [512, 0], [50, 30, 64, 1, 90, 40])
    )
    found: dict[str, Any] = {}
    for name, (heads, groups, size) in HEADS.items():
        for causal in (False, True):
            keys = [image + text * causal for image, text in zip(images, texts, strict=True)]
            shape = {"query": (sum(texts), heads), "key": (sum(keys), groups), "value": (sum(keys), groups)}
            query, key, value = (
                torch.randn(*wide, size, device=setting.device, dtype=setting.dtype)
                for wide in shape.values()
            )
            query_segment, key_segment = (np.repeat(np.arange(len(n)), n) for n in (texts, keys))
            segments = Segments.build(query_segment, key_segment, len(texts), setting.device)
            try:
                out = segment_attention(query, key, value, segments, causal=causal, backend=backend)
            except ConfigError as obstacle:
                return {"unavailable": str(obstacle).replace("\n", " ")}
            error = relative_error(out, _naive(query, key, value, texts, keys, causal))
            found[f"{name}, {'eq. 3' if causal else 'eq. 2'}"] = error
            assert error < ATTENTION_LIMIT[setting.dtype], f"{backend}, {name}, causal={causal}: {error:.1e}"
    return found


def _naive(
    query_THD: torch.Tensor,
    key_NGD: torch.Tensor,
    value_NGD: torch.Tensor,
    texts: list[int],
    keys: list[int],
    causal: bool,
) -> torch.Tensor:
    """The definition, segment by segment in float64."""
    outs = []
    shared = query_THD.shape[1] // key_NGD.shape[1]
    for query, key, value in zip(
        query_THD.double().split(texts),
        key_NGD.double().split(keys),
        value_NGD.double().split(keys),
        strict=True,
    ):
        if len(key) == 0:
            outs.append(torch.zeros_like(query))
            continue
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        scores_HQK = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
        if causal:
            last_Q = torch.arange(len(query), device=key.device) + len(key) - len(query)
            hidden_QK = torch.arange(len(key), device=key.device) > last_Q[:, None]
            scores_HQK = scores_HQK.masked_fill(hidden_QK, float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores_HQK.softmax(-1), value))
    return torch.cat(outs)


def _fusion(backbone: Backbone, fusion: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Logits of a model of two layers, in one forward and word by word, against float64 by the dense mask."""
    model = build(backbone, fusion, setting, tower=False, num_hidden_layers=2, vocab_size=512)
    exact = copy.deepcopy(model).double()
    exact.attention_backend = "reference"
    side = 4 if setting.tiny else 16
    width = model.config.text_config.hidden_size
    pictures = [torch.randn(side**2, width, device=setting.device, dtype=setting.dtype) for _ in range(2)]
    ids = tokens(20, model)
    places = (3, 11)
    expected = _read(exact, ids, places, [picture.double() for picture in pictures], side, [len(ids)])
    whole = _read(model, ids, places, pictures, side, [len(ids)])
    parts = _read(model, ids, places, pictures, side, [5, 8, 12, *range(13, len(ids) + 1)])
    errors = {"one forward": relative_error(whole, expected), "word by word": relative_error(parts, expected)}
    for way, error in errors.items():
        assert error < MODEL_LIMIT[setting.dtype], f"{backbone}, {dict(fusion)}, {way}: {error:.1e}"
    return errors


def _read(
    model: CasaForConditionalGeneration,
    ids: list[int],
    places: tuple[int, ...],
    pictures: list[torch.Tensor],
    side: int,
    ends: list[int],
) -> torch.Tensor:
    """(V,) logits after the last token, read in forwards that end at ``ends``."""
    sequences, start = KVBatch(model, 1), 0
    logits_BV = torch.empty(0)
    for end in ends:
        here = [n for n, place in enumerate(places) if start <= place < end]
        logits_BV = sequences.extend(
            [
                TokenChunk(
                    ids[start:end],
                    [places[n] - start for n in here],
                    [pictures[n] for n in here],
                    [(side, side)] * len(here),
                    [side**2] * len(here),
                )
            ]
        )
        start = end
    return logits_BV[0]
