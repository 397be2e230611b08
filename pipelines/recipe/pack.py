"""`pack`: what a sequence holds, what becomes of a sample it cannot hold, and how sources are mixed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.recipe.fields import Count, Positive, Section

IMAGE_TOKEN_SIDES = {"tiny": 16, "helium": 28, "qwen2_5_vl": 28}
"""Backbone → pixels along one side of an image token: of a patch, times the merge. The paper's Helium sees
through Qwen2.5-VL's vision tower."""
FRAME_SIDE = 448
"""R_max of a video's frames where the recipe does not say (paper, B.1)."""

TextTokens = Annotated[int, Field(ge=16)]
Side = Annotated[int, Field(ge=min(IMAGE_TOKEN_SIDES.values()))]


def frame_side(max_side: int, max_frame_side: int | None) -> int:
    """R_max of a video's frames, pixels: as given, otherwise 448 or ``max_side`` where that is less."""
    return min(FRAME_SIDE, max_side) if max_frame_side is None else max_frame_side


class VideoBudget(Section):
    """What a video may have; it is alone in its sequence."""

    text_tokens: TextTokens = Field(description="Text tokens of a video at most.")
    image_tokens: Count = Field(description="Image tokens of a video at most, all frames together.")


class Mixture(Section):
    """How often each source's samples occur. Without any of it: each once."""

    passes: dict[str, Positive] = Field(
        default_factory=dict, description="Source → how often each of its samples occurs, for example 6."
    )
    weights: dict[str, Positive] = Field(
        default_factory=dict, description="Source → its share of the samples, relative to the others'."
    )
    temperature: Positive | None = Field(
        default=None, description="Raise the sources' sizes to 1 / temperature to get their shares."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [name for name in ("passes", "weights", "temperature") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"A mixture has {' and '.join(given)}. Each alone decides how often samples occur; keep one."
            )
        return self


class Pack(Section):
    """Budgets of a packed sequence, and what goes into it."""

    text_tokens: TextTokens = Field(description="Text tokens a packed sequence may hold.")
    image_tokens: Count = Field(description="Image tokens a packed sequence may hold.")
    max_side: Side = Field(
        description="R_max: an image is shrunk to the area of a square with this side, in pixels."
    )
    max_frame_side: Side | None = Field(
        default=None,
        description=f"The same for frames of videos ({FRAME_SIDE}, or max_side if less, where not given).",
    )
    video: VideoBudget | None = Field(
        default=None, description="Budgets of a video (those of pictures where not given)."
    )
    video_over_budget: Literal["smaller", "fewer", "refuse"] = Field(
        default="smaller",
        description="A video with a question over its image budget: make its frames smaller and, where that "
        "is not enough, keep fewer; keep fewer at once; or quarantine it.",
    )
    min_frame_side: Side | None = Field(
        default=None,
        description="Frames are not made smaller than the area of a square with this side, in pixels (half "
        "of max_frame_side where not given).",
    )
    split: bool = Field(
        default=True,
        description="Split a conversation over the text budget between turns, if its pictures come first, "
        "and a live stream over either budget between frames.",
    )
    mixture: Mixture = Field(default_factory=Mixture, description="How often each source occurs.")

    def check_sides(self, backbone: str) -> None:
        """That pictures and frames are made of whole image tokens, and that one of each fits.

        Raises:
            ValueError: Naming the setting.
        """
        side = IMAGE_TOKEN_SIDES[backbone]
        frame = frame_side(self.max_side, self.max_frame_side)
        videos = self.image_tokens if self.video is None else self.video.image_tokens
        limit = "image_tokens" if self.video is None else "video.image_tokens"
        if self.min_frame_side is not None and self.min_frame_side > frame:
            raise ValueError(
                f"pack.min_frame_side = {self.min_frame_side} is above max_frame_side = {frame}; lower it"
            )
        for name, pixels, budget, field in (
            ("max_side", self.max_side, self.image_tokens, "image_tokens"),
            ("max_frame_side", frame, videos, limit),
        ):
            if pixels % side:
                raise ValueError(
                    f"pack.{name} = {pixels} is no multiple of {side}, "
                    f"the side of an image token of backbone {backbone}; use {max(1, pixels // side) * side}"
                )
            if (tokens := (pixels // side) ** 2) > budget:
                raise ValueError(
                    f"one image of side {name} = {pixels} takes {tokens} image tokens, more than "
                    f"pack.{field} = {budget}; raise {field} or lower {name}"
                )

    def check_sources(self, sources: Collection[str]) -> None:
        """That the mixture speaks of sources that exist.

        Raises:
            ValueError: Naming one that does not.
        """
        for name in ("passes", "weights"):
            for unknown in sorted(set(getattr(self.mixture, name)) - set(sources)):
                raise ValueError(
                    f"pack.mixture.{name} names {unknown!r}, which is not in data.sources; "
                    f"expected one of {', '.join(sources)}"
                )
