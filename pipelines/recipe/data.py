"""``data``: the sources of samples, and how each is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from casa_core.media.limits import PILLOW_PIXELS
from pipelines.recipe.fields import Count, Name, Positive, Section, Share
from pipelines.recipe.filters import Filters

DEFAULT_VIDEO_FPS = 2.0
RESERVED_SOURCES = frozenset({"train", "blind", "pack", "evaluate", "deploy", "report", "start"})


class EasyVqaCorpus(Section):
    """Real 64-pixel pictures and questions from the easy-vqa package, in FineVision's parquet layout."""

    generator: Literal["easy_vqa"] = Field(description="Which generator writes the corpus.")
    train_rows: Count = Field(default=9600, description="Pictures to train on, with five questions each.")
    test_rows: Count = Field(
        default=1200,
        multiple_of=24,
        le=5016,
        description="Held-out questions, about pictures that training never sees: a quarter each about "
        "colour, about shape, yes/no and reworded, yes as often as no. The package has no more.",
    )


class MovingShapesCorpus(Section):
    """Rendered clips of moving coloured shapes with a timed commentary, in Live-WhisperX's layout."""

    generator: Literal["moving_shapes"] = Field(description="Which generator writes the corpus.")
    train_clips: Count = Field(default=400, description="Clips to train on.")
    test_clips: Count = Field(default=48, description="Held-out clips.")
    seconds: Positive = Field(
        default=8.0,
        ge=2,
        multiple_of=0.5,
        description="Length of a clip, seconds: it is sampled every half second, and a shape "
        "needs one second to be named.",
    )
    fps: int = Field(
        default=10,
        ge=10,
        multiple_of=2,
        description="Frames per second of the written mp4 files; sampling times fall on frames.",
    )


class ReadingCorpus(Section):
    """Pictures of four digits and questions that take reading them, in FineVision's parquet layout."""

    generator: Literal["reading"] = Field(description="Which generator writes the corpus.")
    train_rows: Count = Field(
        default=24000, multiple_of=3, description="Pictures with a question to train on, of three kinds."
    )
    test_rows: Count = Field(default=900, multiple_of=3, description="Held-out pictures with a question.")


Corpus = Annotated[EasyVqaCorpus | MovingShapesCorpus | ReadingCorpus, Field(discriminator="generator")]

_READER_OF_GENERATOR = {"easy_vqa": "finevision", "moving_shapes": "live_whisperx", "reading": "finevision"}
_VIDEO_READERS = frozenset({"live_whisperx", "llava_video"})
_FILES = frozenset({"splits"})
_SUBSETS = _FILES | {"subsets", "exclude_subsets"}
READER_OPTIONS = {
    "finevision": _SUBSETS,
    "image_text": _FILES | {"caption_prompt", "pictures"},
    "live_whisperx": _FILES | {"fps", "context"},
    "llava_midtraining": _SUBSETS | {"caption_prompt"},
    "llava_onevision": _SUBSETS,
    "llava_video": _SUBSETS | {"fps", "kinds", "max_seconds"},
}
"""The settings of a source that are its reader's own, by reader."""

Reader = Literal[
    "finevision", "image_text", "live_whisperx", "llava_midtraining", "llava_onevision", "llava_video"
]
Patterns = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class Source(Section):
    """One corpus: what reads it, and where it comes from."""

    reader: Reader = Field(description="Layout of the corpus's files.")
    make: Corpus | None = Field(
        default=None, description="Generate the corpus, instead of reading one from `path`."
    )
    path: str | None = Field(
        default=None,
        description="Folder of an existing corpus in the reader's layout: local, s3://bucket/prefix or "
        "hf://datasets/org/name@revision/path.",
    )
    splits: dict[Literal["train", "test", "unused"], Patterns] | None = Field(
        default=None,
        description="Names of files, as patterns (`val/*`), to be trained on, held out or not read whatever "
        "they are called; others are held out where their name or folder says test, val, dev or the like.",
    )
    identity: Literal["content", "times"] | None = Field(
        default=None,
        description="Whether local files count by their content (where not given), read once for it, or by "
        "size and time of change, for corpora that take too long to read.",
    )
    subsets: Patterns | None = Field(
        default=None, description="Subsets to read, names or patterns such as `gqa*`; all where not given."
    )
    exclude_subsets: Patterns | None = Field(default=None, description="Subsets to leave out.")
    fps: Positive | None = Field(
        default=None,
        description=f"Frames per second taken from videos ({DEFAULT_VIDEO_FPS} where not given).",
    )
    max_seconds: Positive | None = Field(
        default=None, description="Longest video that is used (180 where not given); others are quarantined."
    )
    kinds: (
        Annotated[list[Literal["caption", "open_ended", "multiple_choice"]], Field(min_length=1)] | None
    ) = Field(default=None, description="Kinds of question about videos to read; all where not given.")
    context: list[Literal["title", "category", "previous"]] | None = Field(
        default=None,
        description="What a live model is told about a clip before the query; nothing where not given.",
    )
    caption_prompt: str | None = Field(
        default=None, description="The user's words before a caption; empty for none."
    )
    pictures: Literal["required", "optional"] | None = Field(
        default=None,
        description="Whether a record without a picture is quarantined (where not given) or is text alone.",
    )

    max_pixels: Count | None = Field(
        default=None,
        le=PILLOW_PIXELS,
        description="Larger pictures are quarantined instead of decoded (67 million if not given, and never "
        "more than 178,956,970); memory while decoding is 7 to 19 bytes per pixel.",
    )
    shrink_above: Count | None = Field(
        default=None,
        description="Side of the square, in pixels, to whose area larger pictures are encoded anew; none if "
        "not given.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.make is None) == (self.path is None):
            raise ValueError(
                "expected exactly one of `make` (generate it) and `path` (read it from a folder)"
            )
        if self.make is not None and _READER_OF_GENERATOR[self.make.generator] != self.reader:
            raise ValueError(
                f"generator {self.make.generator} writes the layout of reader "
                f"{_READER_OF_GENERATOR[self.make.generator]}, not of {self.reader}"
            )
        return self

    @model_validator(mode="after")
    def _options_of_its_reader(self) -> Self:
        foreign = sorted(self.reader_options().keys() - READER_OPTIONS[self.reader])
        if foreign:
            own = ", ".join(sorted(READER_OPTIONS[self.reader]))
            reads = "videos" if self.has_video else "still pictures"
            raise ValueError(
                f"{foreign[0]} is no setting of reader {self.reader}, which reads {reads} and has {own}; "
                f"remove {foreign[0]}"
            )
        return self

    @property
    def has_video(self) -> bool:
        return self.reader in _VIDEO_READERS

    def reader_options(self) -> dict[str, Any]:
        """The settings that are given and go to the reader."""
        names = sorted(set().union(*READER_OPTIONS.values()))
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def picture_limits(self) -> dict[str, int]:
        """The bounds on pictures' sizes that are given."""
        limits = {"max_pixels": self.max_pixels, "shrink_above": self.shrink_above}
        return {name: value for name, value in limits.items() if value is not None}


class Data(Section):
    """Sources, by a name of your choice."""

    sources: dict[Name, Source] = Field(min_length=1, description="Each corpus under a name of your choice.")
    filters: Filters = Field(default_factory=Filters, description="Which samples are not trained on.")
    max_failures: Share = Field(
        default=0.01,
        description="Share of a source's records that may be quarantined: in `clean`, and again in `pack`.",
    )

    @model_validator(mode="after")
    def _free_names(self) -> Self:
        if taken := sorted(RESERVED_SOURCES & self.sources.keys()):
            raise ValueError(
                f"a source cannot be called {taken[0]}: a stage's input has that name; choose another"
            )
        return self
