"""Keeps the tables of models.md true: parameters of every fusion at full size, counted on models without
weights.

python -m docs.parameter_counts    # writes the tables anew; a test fails when they are stale
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from casa_core.backbones.published import (
    helium1_2b_text,
    qwen2_5_vl_3b_text,
    qwen2_5_vl_3b_vision,
)
from casa_core.config import STAGES, CasaConfig, TextConfig, TrainingStage
from casa_core.errors import ConfigError
from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- parameters: begin -->", "<!-- parameters: end -->"
BACKBONES = {"Helium1-2B": helium1_2b_text, "Qwen2.5-VL-3B": qwen2_5_vl_3b_text}

# fusion → its settings, and the new parameters that the paper's Table 1 prints for Helium1-2B, if any.
FUSIONS: dict[str, tuple[dict[str, Any], str]] = {
    "cross-attention ⊕, →, after; with image FFNs too": ({}, "352M"),
    "cross-attention with shared projections (CA🔗)": ({"shared_projections": True}, "-"),
    "cross-attention, adaptive gate": ({"gate": "adaptive_sigmoid"}, "-"),
    "cross-attention, tanh gate, norms of its own": (
        {"placement": "before", "gate": "tanh", "image_norm": "own", "text_norm": "own"},
        "-",
    ),
    "CASA ⊕, →, after": ({"kind": "casa"}, "352M"),
    "CASA in the place of every 4th self-attention": ({"kind": "casa", "placement": "replace"}, "0"),
    "insertion": ({"kind": "insertion"}, "0"),
    "Q-Former, 32 queries, one block": ({"kind": "qformer", "qformer_queries": 32}, "-"),
    "Q-Former, 64 queries, one block": ({"kind": "qformer", "qformer_queries": 64}, "-"),
    "Q-Former, 128 queries, one block": ({"kind": "qformer", "qformer_queries": 128}, "-"),
}
TRAINED = {"Helium1-2B": ["helium-image"], "Qwen2.5-VL-3B": ["qwen-image", "qwen-livecc"]}


def model_of(text: TextConfig, fusion: dict[str, Any]) -> CasaForConditionalGeneration:
    """A model at full size, without weights."""
    with torch.device("meta"):
        config = CasaConfig(text_config=text, vision_config=qwen2_5_vl_3b_vision(), fusion=fusion)
        return CasaForConditionalGeneration(config)


def new_parameters(model: CasaForConditionalGeneration) -> int:
    """What the fusion adds to backbone and tower."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".fusion." in name or name.startswith("qformer.")
    )


def trained_parameters(model: CasaForConditionalGeneration, stage: TrainingStage) -> int | None:
    """What a stage trains; ``None`` where it has nothing to train."""
    try:
        groups = parameter_groups(model, stage)
    except ConfigError:
        return None
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def millions(count: int | None) -> str:
    """A count in millions, exact below 100,000."""
    if count is None:
        return "nothing"
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:,.1f} M"


def tables() -> str:
    """Both tables as Markdown."""
    lines = ["| backbone | language model | vision tower | last four tower blocks |", "|---|---|---|---|"]
    for name, text in BACKBONES.items():
        model = model_of(text(), {"kind": "insertion"})
        tower = sum(parameter.numel() for parameter in model.vision_tower.parameters())
        whole = sum(parameter.numel() for parameter in model.parameters())
        last = sum(p.numel() for block in list(model.vision_tower.blocks)[-4:] for p in block.parameters())
        lines.append(f"| {name} | {millions(whole - tower)} | {millions(tower)} | {millions(last)} |")
    stages = [stage for name in BACKBONES for stage in TRAINED[name]]
    heads = [
        "fusion",
        *(f"new, {name}" for name in BACKBONES),
        "Table 1",
        *(f"trained, `{s}`" for s in stages),
    ]
    lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, (fusion, paper) in FUSIONS.items():
        models = {backbone: model_of(text(), fusion) for backbone, text in BACKBONES.items()}
        new = [millions(new_parameters(model)) for model in models.values()]
        trained = [
            millions(trained_parameters(models[backbone], STAGES[stage]))
            for backbone in BACKBONES
            for stage in TRAINED[backbone]
        ]
        lines.append(f"| {' | '.join([name, *new, paper, *trained])} |")
    return "\n".join(lines)


def replaced(document: str) -> str:
    """The document with the tables as they should be."""
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{DOCUMENT} counts {len(FUSIONS)} fusions on {len(BACKBONES)} backbones")
