"""Fused checkpoints in other layouts → our model. Tensors are found by structure: where they stand, their
shapes, and letters in their names only where shapes leave a choice.

What tensors do not show has to be given: the positions inside fusion layers, and for Helium
which pairs of a head RoPE turns. A wrong choice there loads cleanly and answers wrongly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import torch
from transformers.models.helium import HeliumConfig

from casa_core.config import CasaConfig
from casa_core.errors import ConfigError, StoreError
from casa_core.fusion.config import Positions
from casa_core.fusion.layers import PROJECTIONS
from casa_core.model import CasaForConditionalGeneration
from casa_core.weights.files import ImportReport, Shape, TensorCopy, WeightFiles, build, parameter_shapes
from casa_core.weights.from_backbone import BUFFERS, HEAD, half_split_to_pairs
from casa_core.weights.tensor_matching import find_projections, pick

RopePairs = Literal["neighbours", "halves"]
PARTS = ("language_model", "vision_tower", "qformer", "lm_head", "fusion")


def import_checkpoint(
    folder: str | Path,
    *,
    config: CasaConfig,
    positions: Positions,
    rope_pairs: RopePairs | None = None,
    where: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> tuple[CasaForConditionalGeneration, ImportReport]:
    """A model from a checkpoint in another layout, in evaluation mode, and where each weight came from.

    Args:
        folder: Safetensors files, local or on the hub.
        config: What the checkpoint is: backbone, tower, fusion. Its own config.json is not read.
        positions: Positions inside fusion layers that it was trained with (:class:`FusionConfig`).
        rope_pairs: For Helium: rows of a head that RoPE turns together. ``neighbours``: 2i and 2i + 1
            (Helium's code); ``halves``: i and i + D/2 (Llama's).
        where: Chooses a part where the search finds several: ``language_model``, ``vision_tower``,
            ``qformer``: what stands before its tensors' known names; ``lm_head``: the tensor; ``fusion``: the
            module inside each decoder layer that holds q, k, v and o.
        ignore: Patterns (``*``) of tensors that may be left over.
        dtype: Type of the weights; as stored by default.

    Raises:
        ConfigError: If a choice is missing or cannot be.
        StoreError: If files are missing, or anything is missing, ambiguous, of another shape or left over:
            nothing is imported in part.
    """
    report = inspect_checkpoint(
        folder, config=config, positions=positions, rope_pairs=rope_pairs, where=where, ignore=ignore
    )
    if report.problems:
        rest = len(report.problems) - 4
        shown = [*report.problems[:4], *([f"and {rest} more"] if rest > 0 else [])]
        raise StoreError(
            f"{folder} was not imported: it is not what the configuration says.",
            "; ".join(shown),
            "Correct the configuration, where= or ignore=; inspect_checkpoint(…).table() lists every tensor.",
        )
    model = build(_with_positions(config, positions), report.taken, dtype or report.taken[0].value().dtype)
    return model, report


def inspect_checkpoint(
    folder: str | Path,
    *,
    config: CasaConfig,
    positions: Positions,
    rope_pairs: RopePairs | None = None,
    where: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> ImportReport:
    """What :func:`import_checkpoint` would take, and why it would refuse; no weight is loaded.

    Raises:
        ConfigError: If a choice is missing or cannot be.
        StoreError: If files are missing or damaged.
    """
    unknown = sorted(set(where or {}) - set(PARTS))
    if unknown:
        raise ConfigError(f"`where` has no part {unknown[0]!r}.", f"Parts: {', '.join(PARTS)}.", "Rename it.")
    _check_rope_pairs(config, rope_pairs)
    search = _Search(WeightFiles.of(folder), _with_positions(config, positions), where or {})
    search.language_model()
    search.head()
    search.fusion()
    search.part("vision_tower")
    search.part("qformer")
    left_over = search.left_over()
    unexpected = [name for name in left_over if not any(fnmatch(name, pattern) for pattern in ignore)]
    if unexpected and not search.problems:  # what is missing leaves the rest of its part over: noise
        search.problems.append(f"{len(unexpected)} tensors would be left over: {_listed(unexpected)}")
    if rope_pairs == "halves" and isinstance(config.text_config, HeliumConfig):
        search.copies = [
            replace(copy, change=half_split_to_pairs(copy.target, config.text_config))
            if ".self_attn." in copy.target or ".fusion." in copy.target
            else copy
            for copy in search.copies
        ]
    return ImportReport(tuple(search.copies), (), tuple(left_over), tuple(search.problems))


def _with_positions(config: CasaConfig, positions: Positions) -> CasaConfig:
    return CasaConfig(
        text_config=config.text_config,
        vision_config=config.vision_config,
        fusion=replace(config.fusion_settings, positions=positions),
        images_withheld=config.images_withheld,
    )


def _check_rope_pairs(config: CasaConfig, rope_pairs: RopePairs | None) -> None:
    helium = isinstance(config.text_config, HeliumConfig)
    if helium and rope_pairs not in ("neighbours", "halves"):
        raise ConfigError(
            f"`rope_pairs = {rope_pairs!r}` does not say which rows of a head RoPE turns together.",
            "Helium's code turns neighbours, Llama's halves; both load, and one of them answers nonsense.",
            'Pass rope_pairs="neighbours" or rope_pairs="halves"; try both where it is not known.',
        )
    if not helium and rope_pairs not in (None, "halves"):
        raise ConfigError(
            f"`rope_pairs = {rope_pairs!r}` does not go with Qwen2.5-VL.",
            "Its RoPE turns halves in every release.",
            "Leave it out.",
        )


class _Search:
    """Looks for every parameter of a model among foreign tensors.

    Attributes:
        copies: What was found.
        problems: What was not, or not clearly.
    """

    def __init__(self, files: WeightFiles, config: CasaConfig, where: Mapping[str, str]) -> None:
        self.files = files
        self.config = config
        self.where = where
        self.copies: list[TensorCopy] = []
        self.problems: list[str] = []
        self.same: set[str] = set()
        self.text_prefix: str | None = None
        self.expected = parameter_shapes(config)

    def language_model(self) -> None:
        """The backbone, by its known names behind any prefix."""
        known = {
            name: shape for name, shape in self._of("language_model").items() if ".fusion." not in f".{name}"
        }
        self.text_prefix = self._find("language_model", known)

    def part(self, part: str) -> None:
        """A part by its known names behind any prefix; nothing where the model has no such part."""
        known = self._of(part)
        if known:
            self._find(part, known)

    def _of(self, part: str) -> dict[str, Shape]:
        start = f"{part}."
        return {n.removeprefix(start): shape for n, shape in self.expected.items() if n.startswith(start)}

    def _find(self, part: str, known: Mapping[str, Shape]) -> str | None:
        """The prefix behind which every tensor of a part lies in its shape; notes a problem otherwise."""
        fitting: Counter[str] = Counter()
        for name, shape in self.files.shapes.items():
            cut = -1
            while cut < len(name):
                if known.get(name[cut + 1 :]) == shape:
                    fitting[name[: cut + 1]] += 1
                cut = name.find(".", cut + 1)
                if cut < 0:
                    break
        if part in self.where:
            given = self.where[part]
            whole = [given] if fitting[given] == len(known) else []
            best = given
        else:
            whole = [prefix for prefix, count in fitting.items() if count == len(known)]
            best = max(fitting, key=lambda prefix: fitting[prefix], default="")
        if len(whole) > 1:
            self.problems.append(f"{part} lies behind {_listed(sorted(whole))}: choose one with where=")
        elif not whole:
            self._explain_missing(part, best, known)
        else:
            self.copies += [TensorCopy(f"{part}.{name}", whole[0] + name, self.files) for name in known]
            return whole[0]
        return None

    def _explain_missing(self, part: str, prefix: str, known: Mapping[str, Shape]) -> None:
        """Why the most likely prefix is none."""
        shapes = self.files.shapes
        absent = [prefix + name for name in known if prefix + name not in shapes]
        other = [
            f"{prefix}{name} {shapes[prefix + name]} instead of {shape}"
            for name, shape in known.items()
            if shapes.get(prefix + name, shape) != shape
        ]
        if len(absent) == len(known):
            self.problems.append(f"{part} was not found: no tensor ends in {next(iter(known))}, for one")
        elif absent:
            self.problems.append(f"{part} lacks {len(absent)} of {len(known)} tensors: {_listed(absent)}")
        if other:
            self.problems.append(f"{part} has other shapes: {_listed(other)}")

    def head(self) -> None:
        """The language-model head; one that is the embedding may be stored beside it."""
        shape = (self.config.text_config.vocab_size, self.config.text_config.hidden_size)
        named = sorted(name for name in self.files.shapes if name == HEAD or name.endswith(f".{HEAD}"))
        found = [self.where["lm_head"]] if "lm_head" in self.where else named
        fitting = [name for name in found if self.files.shapes.get(name) == shape]
        if HEAD not in self.expected:
            embedding = None if self.text_prefix is None else f"{self.text_prefix}embed_tokens.weight"
            for name in fitting if embedding else []:
                if torch.equal(self.files.read(name), self.files.read(str(embedding))):
                    self.same.add(name)
                else:
                    self.problems.append(f"{name} differs from the embedding, but tie_word_embeddings is set")
        elif len(fitting) == 1:
            self.copies.append(TensorCopy(HEAD, fitting[0], self.files))
        else:
            which = f"several: {_listed(fitting)}" if fitting else f"no {HEAD} of the shape {shape}"
            self.problems.append(f"the head: {which} (tie_word_embeddings is not set)")

    def fusion(self) -> None:
        """Each fused layer's own tensors, among those of the decoder layer that are not the backbone's."""
        if self.text_prefix is None:
            return
        backbone = {copy.source for copy in self.copies}
        for index in self.config.fusion_settings.layer_indices(self.config.text_config.num_hidden_layers):
            target, prefix = f"language_model.layers.{index}.fusion.", f"{self.text_prefix}layers.{index}."
            wanted = {n.removeprefix(target): s for n, s in self.expected.items() if n.startswith(target)}
            extra = {
                name.removeprefix(prefix): shape
                for name, shape in self.files.shapes.items()
                if name.startswith(prefix) and name not in backbone
            }
            own = {n: shape for n, shape in wanted.items() if n.split(".")[0] in PROJECTIONS}
            found, problems = find_projections(own, extra, self.where.get("fusion"))
            rest = {name: shape for name, shape in extra.items() if name not in found.values()}
            others, unclear = pick({n: s for n, s in wanted.items() if n not in own}, rest)
            self.copies += [
                TensorCopy(target + name, prefix + source, self.files)
                for name, source in (found | others).items()
            ]
            self.problems += [f"layer {index}: {problem}" for problem in (*problems, *unclear)]

    def left_over(self) -> list[str]:
        """Tensors that nothing became."""
        used = {copy.source for copy in self.copies} | self.same
        return sorted(n for n in self.files.shapes if n not in used and not n.endswith(BUFFERS))


def _listed(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")
