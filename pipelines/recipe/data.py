"""``data``: the sources of samples, and how each is read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.recipe.fields import Count, Name, Positive, Section, Share

RESERVED_SOURCES = frozenset({"train", "blind", "pack", "evaluate", "deploy", "report"})


class EasyVqaCorpus(Section):
    """Real 64-pixel pictures and questions from the easy-vqa package, in FineVision's parquet layout."""

    generator: Literal["easy_vqa"] = Field(description="Which generator writes the corpus.")
    train_rows: Count = Field(default=12000, description="Questions with answers to train on.")
    test_rows: Count = Field(
        default=900, description="Held-out pairs, about pictures that training never sees."
    )


class MovingShapesCorpus(Section):
    """Rendered clips of moving coloured shapes with a timed commentary, in Live-WhisperX's layout."""

    generator: Literal["moving_shapes"] = Field(description="Which generator writes the corpus.")
    train_clips: Count = Field(default=400, description="Clips to train on.")
    test_clips: Count = Field(default=48, description="Held-out clips.")
    seconds: Positive = Field(default=8.0, description="Length of a clip, seconds.")
    fps: Count = Field(default=10, description="Frames a second of the written mp4 files.")


Corpus = Annotated[EasyVqaCorpus | MovingShapesCorpus, Field(discriminator="generator")]

_READER_OF_GENERATOR = {"easy_vqa": "finevision", "moving_shapes": "live_whisperx"}
_VIDEO_READERS = frozenset({"live_whisperx"})


class Source(Section):
    """One corpus: what reads it, and where it comes from."""

    reader: Literal["finevision", "live_whisperx"] = Field(description="Layout of the corpus's files.")
    make: Corpus | None = Field(
        default=None, description="Generate the corpus, instead of reading one from `path`."
    )
    path: str | None = Field(default=None, description="Folder of an existing corpus in the reader's layout.")
    fps: Positive | None = Field(
        default=None, description="Frames a second taken from videos (2.0 where not given)."
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
        if self.fps is not None and not self.has_video:
            raise ValueError(f"fps is for videos, and reader {self.reader} reads still pictures; remove it")
        return self

    @property
    def has_video(self) -> bool:
        return self.reader in _VIDEO_READERS


class Data(Section):
    """Sources, by a name of your choice."""

    sources: dict[Name, Source] = Field(min_length=1, description="Each corpus under a name of your choice.")
    max_failures: Share = Field(
        default=0.01, description="Share of a source's records that may be quarantined."
    )

    @model_validator(mode="after")
    def _free_names(self) -> Self:
        if taken := sorted(RESERVED_SOURCES & self.sources.keys()):
            raise ValueError(
                f"a source cannot be called {taken[0]}: a stage's input has that name; choose another"
            )
        return self
