"""Which parameters a training stage trains, at which learning rate (paper, Table 10 and B.1).

New parameters are trained at a base learning rate of 1e-4, existing ones at 1e-5 or not at all. The vision
tower's merger, norms and patch embedding stay frozen: the paper trains the "4 last blocks". (A tower that
starts from random weights is trained whole.)

Rows of the vocabulary that a chat template adds to a text-only backbone lie in its embedding and its head,
and train with them at the existing rate: as new parameters Table 10 names CASA layers and Q-Former.

Our choice, where the paper leaves it open: a frozen language model whose fusion layers borrow its projections
(shared projections, or ∨) has nothing new to train. There the borrowed q, k, v and o are unfrozen at the
existing parameters' rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from casa_core.backbones.vision import last_blocks
from casa_core.config import TrainingStage
from casa_core.errors import ConfigError
from casa_core.fusion.layers import PROJECTIONS
from casa_core.model import CasaForConditionalGeneration

Kind = Literal["new", "existing"]


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    kind: Kind
    parameters: list[nn.Parameter]


def parameter_groups(model: CasaForConditionalGeneration, stage: TrainingStage) -> list[dict[str, Any]]:
    """Make exactly the stage's parameters trainable, and group them for an optimizer.

    Args:
        model: Its parameters' ``requires_grad`` is set, to True or to False.
        stage: What to train.

    Returns:
        Groups with ``name``, ``kind`` (``new`` or ``existing``), ``params`` and ``lr``; each trainable
        parameter in one of them. Weight decay is left to the optimizer, one for all.

    Raises:
        ConfigError: If nothing would be trained, or the tower has fewer blocks.
    """
    groups = list(_groups(model, stage))
    model.requires_grad_(False)
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(True)
    return [
        {"name": group.name, "kind": group.kind, "params": group.parameters, "lr": _rate(group, stage)}
        for group in groups
    ]


def describe(model: CasaForConditionalGeneration, stage: TrainingStage) -> str:
    """A table for terminals: what the stage trains of a model. The model is left as it is.

    Raises:
        ConfigError: As :func:`parameter_groups`.
    """
    every = list(model.parameters())
    rows = [("group", "", "tensors", "parameters", "learning rate")]
    trained: set[int] = set()
    for group in _groups(model, stage):
        rows.append((group.name, group.kind, *_size(group.parameters), f"{_rate(group, stage):.0e}"))
        trained.update(map(id, group.parameters))
    rows.append(("frozen", "", *_size([p for p in every if id(p) not in trained]), "-"))
    rows.append(("all", "", *_size(every), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _rate(group: _Group, stage: TrainingStage) -> float:
    return stage.new_learning_rate if group.kind == "new" else stage.existing_learning_rate


def _size(parameters: list[nn.Parameter]) -> tuple[str, str]:
    return f"{len(parameters)}", f"{sum(parameter.numel() for parameter in parameters):,}"


def _groups(model: CasaForConditionalGeneration, stage: TrainingStage) -> Iterator[_Group]:
    """Every trained parameter in one group, tied ones once."""
    empty = True
    for name, kind, parameters in _parts(model, stage):
        each = list({id(parameter): parameter for parameter in parameters}.values())
        if each:
            empty = False
            yield _Group(name, kind, each)
    if empty:
        fusion = repr(model.config.fusion_settings.kind)
        withheld = " with images withheld" if model.config.images_withheld else ""
        raise ConfigError(
            "This stage trains nothing of this model.",
            f"It has language_model = {stage.language_model}, vision_blocks = {stage.vision_blocks}, "
            f"fusion = {stage.fusion}, and {fusion}{withheld} adds nothing that it would train.",
            "Train the language model, or some of the vision tower's last blocks.",
        )


def _parts(
    model: CasaForConditionalGeneration, stage: TrainingStage
) -> Iterator[tuple[str, Kind, list[nn.Parameter]]]:
    """What the stage trains, in disjoint parts."""
    layers = model.fused_layers()
    new = _parameters([layer.fusion for layer in layers])
    if model.config.fusion_settings.kind == "qformer":
        new += _parameters([model.qformer])
    # What no text token can reach gets no gradient; left trainable, weight decay alone would change it.
    sees = not model.config.images_withheld
    if stage.fusion and sees:
        yield "fusion", "new", new
    if stage.language_model:
        added = set(map(id, new))
        every = _parameters([model.language_model, model.lm_head])
        yield "language model", "existing", [p for p in every if id(p) not in added]
    elif stage.fusion and model.config.fusion_settings.borrows_projections:
        borrowed = [getattr(layer.self_attn, name) for layer in layers for name in PROJECTIONS]
        yield "borrowed projections", "existing", _parameters(borrowed)
    if stage.vision_blocks == "all":
        name, parts = "vision tower", [model.vision_tower]
    else:
        name, parts = "vision tower's last blocks", last_blocks(model.vision_tower, stage.vision_blocks)
    if sees:
        yield name, "existing", _parameters(parts)


def _parameters(modules: Iterable[nn.Module | None]) -> list[nn.Parameter]:
    return [parameter for module in modules if module is not None for parameter in module.parameters()]
