"""Settings of the pack stage: frozen, complete and typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from casa_core.media.images import VideoOverBudget
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.recipe.filters import Filters
from pipelines.recipe.model import Tokenizer
from pipelines.recipe.pack import Mixture, VideoBudget


@stage_settings
class PackSettings:
    """What decides a pack artifact, under the recipe's own names.

    Attributes:
        sources: Names of the sources, in the recipe's order.
        tokenizer, template, backbone: The recipe's ``model`` section.
        image_placement: Where consecutive images go in the text: see :mod:`casa_core.processing.templates`.
        filters, max_failures: The recipe's, in its ``data`` section.
        text_tokens, image_tokens, max_side, max_frame_side, video, video_over_budget, min_frame_side, split,
            mixture: Its ``pack`` section.
        seed: Seed of the order of sequences, and of what a fractional pass takes.
    """

    sources: list[str]
    tokenizer: Tokenizer
    template: str
    backbone: str
    image_placement: Literal["window_start", "in_place"]
    filters: Filters
    max_failures: float
    text_tokens: int
    image_tokens: int
    max_side: int
    max_frame_side: int | None
    video: VideoBudget | None
    video_over_budget: VideoOverBudget
    min_frame_side: int | None
    split: bool
    mixture: Mixture
    seed: int

    @property
    def limits(self) -> Limits:
        """Budgets by kind of sequence: a video has those of pictures where it has none of its own."""
        video = self.video or self
        return Limits(
            pictures=Budget(self.text_tokens, self.image_tokens),
            video=Budget(video.text_tokens, video.image_tokens),
            split=self.split,
        )


def read_pack_settings(values: Mapping[str, Any]) -> PackSettings:
    """The stage's settings, with the paths of files that the fingerprint has by content only.

    Args:
        values: As :func:`pipelines.recipe.stages.pack_settings` makes them, ``tokenizer_path`` and
            ``hash_lists`` (JSON) beside the settings that they replace.

    Raises:
        ConfigError: If a field is missing, unknown or of the wrong type; names all of them.
    """
    found = dict(values)
    if (path := found.pop("tokenizer_path", None)) is not None:
        found["tokenizer"] = {"path": path}
    if (paths := found.pop("hash_lists", None)) is not None:
        listed = found["filters"]["decontamination"] | {"hashes": json.loads(paths)}
        found["filters"] = found["filters"] | {"decontamination": listed}
    return read_settings(PackSettings, found)
