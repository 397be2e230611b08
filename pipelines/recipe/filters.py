"""``data.filters``: which clean samples are left out of training. Each filter is off until it is declared."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.recipe.fields import Count, Section

Rating = Annotated[int, Field(ge=1, le=5)]
Distance = Annotated[int, Field(ge=0, le=8)]
Compared = Literal["pictures_and_text", "pictures"]


class Ratings(Section):
    """Least ratings, from 1 to 5, that all turns of a sample must have (FineVision)."""

    relevance: Rating | None = Field(default=None, description="How well the answer fits the question.")
    image_correspondence: Rating | None = Field(
        default=None, description="How well the answer fits the picture."
    )
    visual_dependency: Rating | None = Field(
        default=None, description="How much the picture is needed to answer."
    )
    formatting: Rating | None = Field(default=None, description="How well the answer is written.")
    unrated: Literal["keep", "remove"] = Field(
        default="keep", description="What becomes of samples without a rating that is asked for."
    )

    @model_validator(mode="after")
    def _some_rating(self) -> Self:
        if not (self.model_fields_set - {"unrated"}):
            raise ValueError("expected a least rating; name at least one, for example relevance: 3")
        return self


class TextLength(Section):
    """Characters of trained text a sample must have."""

    min_characters: Count | None = Field(default=None, description="At least so many.")
    max_characters: Count | None = Field(default=None, description="At most so many.")

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        low, high = self.min_characters, self.max_characters
        if low is None and high is None:
            raise ValueError("expected min_characters, max_characters or both")
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_characters {low} is more than max_characters {high}, so nothing is left")
        return self


class AspectRatio(Section):
    """How elongated pictures may be."""

    max: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        description="Largest longer side divided by the shorter one, of any picture or video of a sample."
    )


class Decontamination(Section):
    """Pictures of evaluation sets, which must not be trained on."""

    hashes: list[str] = Field(
        min_length=1, description="Files with hashes of their pictures (parquet or JSON), as made from them."
    )
    distance: Distance = Field(
        default=3,
        description="Bits of 64 in which a near picture's hash may differ; equal bytes always count.",
    )


class Duplicates(Section):
    """Samples that are equal to an earlier one."""

    of: Compared = Field(
        default="pictures_and_text",
        description="What must be equal: pictures and all text, or pictures alone whatever is asked of them.",
    )


class NearDuplicates(Section):
    """Samples whose still pictures look like those of an earlier one."""

    distance: Distance = Field(default=3, description="Bits of 64 in which two pictures' hashes may differ.")
    of: Compared = Field(
        default="pictures_and_text",
        description="Whether all text must be equal, too, or pictures count alone.",
    )


class Filters(Section):
    """In this order; a sample is removed by the first filter that it does not pass."""

    ratings: Ratings | None = Field(default=None, description="Least ratings.")
    text_length: TextLength | None = Field(default=None, description="Characters of trained text.")
    aspect_ratio: AspectRatio | None = Field(default=None, description="Elongated pictures.")
    decontamination: Decontamination | None = Field(default=None, description="Evaluation sets' pictures.")
    duplicates: Duplicates | None = Field(default=None, description="Equal samples.")
    near_duplicates: NearDuplicates | None = Field(default=None, description="Pictures that look alike.")
