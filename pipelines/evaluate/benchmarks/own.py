"""A benchmark of one's own: a parquet file and a few lines of YAML, no code.

    name: shop_signs
    data: signs/questions-*.parquet     # beside the YAML file, an absolute path, or a URI
    picture: image                      # column of pictures: {bytes, path}, or encoded bytes
    answers: answer                     # column of the right answer, or of a list of them
    prompt: "{question}\\nAnswer the question using a single word or phrase."
    metric: anls

A name in braces in the prompt is a column of texts; ``{{`` and ``}}`` stand for braces. A multiple choice has
``options``, a column of lists of texts: ``{options}`` in the prompt then lists them with their letters, and
``answers`` holds the right one as ``answers_as`` states.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from casa_core.errors import ConfigError
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question
from pipelines.evaluate.benchmarks.layout.build import about_picture, letter_of, lettered
from pipelines.evaluate.benchmarks.layout.columns import Column, Kind, Record
from pipelines.evaluate.metrics.base import Metric, Truth
from pipelines.evaluate.metrics.by_name import metric_named
from pipelines.evaluate.metrics.choice import Choice
from pipelines.evaluate.metrics.mme import Mme
from pipelines.recipe.fields import Count, Name, Section
from pipelines.storage.uri import is_remote

OPTIONS = "options"


class Own(Section):
    """The YAML file of a benchmark of one's own."""

    name: Name = Field(description="Short name; the source of its questions.")
    title: str = Field(default="", description="Its name in tables (the short one where not given).")
    data: str = Field(min_length=1, description="Parquet file or files (* allowed): a path, or a URI.")
    split: str = Field(default="test", description="Name of the split, for results.")
    picture: str = Field(default="image", description="Column of pictures.")
    prompt: str = Field(min_length=1, description="What is asked; {column} stands for a column of texts.")
    answers: str = Field(description="Column of the right answer, or of a list of right answers.")
    answers_as: Literal["text", "texts", "letter", "index"] = Field(
        default="text", description="What the column of answers holds."
    )
    options: str | None = Field(default=None, description="Column of a multiple choice's options.")
    id: str | None = Field(default=None, description="Column of ids (the number of the row where not given).")
    category: str | None = Field(default=None, description="Column of categories, each scored by itself too.")
    group: str | None = Field(default=None, description="Column that names what is resampled together.")
    metric: str = Field(description="Name of the metric.")
    max_new_tokens: Count = Field(default=128, description="Longest answer, tokens.")


def own_benchmark(path: str | Path) -> Benchmark:
    """The benchmark that a YAML file describes.

    Raises:
        ConfigError: For a file that cannot be read, or settings that cannot work; names them and what they
            may be.
    """
    file = Path(path)
    own = _parse(file)
    metric = metric_named(own.metric)
    if problems := list(_combinations(own, metric)):
        raise _refused(file, problems)
    elsewhere = is_remote(own.data) or Path(own.data).is_absolute()
    folder, _, files = (own.data if elsewhere else f"{file.parent}/{own.data}").rpartition("/")
    return Benchmark(
        name=own.name,
        title=own.title or own.name,
        repository=folder,
        files=(files,),
        split=own.split,
        columns=_columns(own),
        metric=metric,
        read=OwnReader(own),
        max_new_tokens=own.max_new_tokens,
        prompt_source=str(file),
    )


@dataclass(frozen=True)
class OwnReader:
    """Row → question as the YAML file states it; pickles, as Ray needs it."""

    own: Own

    def __call__(self, record: Record) -> Question:
        own = self.own
        options = record.texts(own.options) if own.options else ()
        fields = {name: record.text(name) for name in placeholders(own.prompt) if name != OPTIONS}
        if options:
            fields[OPTIONS] = lettered(options)
        truth = Truth(
            answers=self._answers(record, options),
            options=options,
            category=record.key(own.category) if own.category else "",
            group=record.key(own.group) if own.group else "",
        )
        name = record.key(own.id) if own.id else None
        return about_picture(record, own.prompt.format(**fields), truth, id=name, column=own.picture)

    def _answers(self, record: Record, options: tuple[str, ...]) -> tuple[str, ...]:
        column, form = self.own.answers, self.own.answers_as
        if form == "texts":
            return record.texts(column)
        if form == "index":
            return (ascii_uppercase[record.index(column, len(options))],)
        if form == "letter":
            letter = record.text(column).strip().upper()
            if letter not in tuple(ascii_uppercase[: len(options)]):
                raise record.refused(
                    column, f"holds {letter!r}, which is no letter of the {len(options)} options"
                )
            return (letter,)
        return (letter_of(record, column, options) if options else record.text(column),)


def placeholders(prompt: str) -> tuple[str, ...]:
    """The names in braces in a prompt, each once.

    Raises:
        ValueError: For braces that do not match, or anything but a plain name in them.
    """
    names = []
    for _, name, form, conversion in string.Formatter().parse(prompt):
        if name is not None:
            if not name.isidentifier() or form or conversion:
                raise ValueError(f"{{{name}}} is no plain name of a column")
            names.append(name)
    return tuple(dict.fromkeys(names))


def _parse(file: Path) -> Own:
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"The benchmark {file} cannot be read.", f"{problem}.", "Give the path of a YAML file."
        ) from None
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"The benchmark {file} has no settings.",
            f"The file holds {type(values).__name__} instead of name: value lines.",
            "It needs name, data, prompt, answers and metric.",
        )
    try:
        return Own.model_validate(dict(values))
    except ValidationError as error:
        raise _refused(
            file, [_problem(detail, values) for detail in error.errors(include_url=False)]
        ) from None


def _problem(detail: ErrorDetails, values: Mapping[str, Any]) -> str:
    """One of pydantic's complaints, in words of the file."""
    setting = ".".join(map(str, detail["loc"]))
    field = Own.model_fields.get(setting)
    meaning = f" ({field.description.rstrip('.')})" if field and field.description else ""
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(setting, Own.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(Own.model_fields)}"
        return f"There is no setting {setting}; {hint}"
    if detail["type"] == "missing":
        return f"The setting {setting} is missing{meaning}"
    return f"The setting {setting} cannot be {values.get(setting)!r}{meaning}: {detail['msg']}"


def _combinations(own: Own, metric: Metric) -> Iterator[str]:
    """Settings that do not go together."""
    try:
        names = placeholders(own.prompt)
    except ValueError as error:
        yield f"The prompt cannot be filled in: {error}; braces themselves are written {{{{ and }}}}"
        return
    if not names:
        yield "The prompt names no column, so that every question would be the same; write {question} there"
    if (OPTIONS in names) != (own.options is not None):
        yield "A multiple choice needs both {options} in its prompt and a column of options"
    if isinstance(metric, Choice) != (own.options is not None):
        needs = "needs" if isinstance(metric, Choice) else "has no use for"
        yield f"The metric {metric.name} {needs} a column of options"
    if own.answers_as in ("letter", "index") and not own.options:
        yield f"Answers given as {own.answers_as} need a column of options"
    if own.answers_as == "texts" and own.options:
        yield "A multiple choice has one right answer, which answers_as gives as letter, index or text"
    if isinstance(metric, Mme) and not (own.group and own.category):
        yield f"The metric {metric.name} needs a column of categories, and one of groups for its pairs"


def _refused(file: Path, problems: list[str]) -> ConfigError:
    return ConfigError(
        f"The benchmark {file} cannot work: {len(problems)} setting{'s' * (len(problems) > 1)}.",
        "\n".join(problem if problem[-1] in ".?" else f"{problem}." for problem in problems),
        "Correct the file; docs/evaluation.md has an example.",
    )


def _columns(own: Own) -> tuple[Column, ...]:
    answers = {"text": Kind.TEXT, "texts": Kind.TEXTS, "letter": Kind.TEXT, "index": Kind.INDEX}
    found = {name: Kind.TEXT for name in placeholders(own.prompt) if name != OPTIONS}
    found |= {name: Kind.KEY for name in (own.id, own.category, own.group) if name}
    if own.options:
        found[own.options] = Kind.TEXTS
    found |= {own.answers: answers[own.answers_as], own.picture: Kind.PICTURE}
    return tuple(Column(name, kind) for name, kind in found.items())
