"""Columns of a benchmark's table: which must be there, of which type, and their values row by row."""

from __future__ import annotations

import ast
import enum
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from casa_core.errors import DataError


class Kind(enum.Enum):
    """What a column holds, in words for an error."""

    TEXT = "text"
    TEXTS = "a list of texts"
    KEY = "text or whole numbers"
    INDEX = "whole numbers, or texts of digits"
    NUMBER = "numbers, or texts of them"
    PICTURE = "pictures, each {bytes, path} or encoded bytes"


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a benchmark needs."""

    name: str
    kind: Kind


def columns(**kinds: Kind) -> tuple[Column, ...]:
    """Columns from ``name=kind``."""
    return tuple(Column(name, kind) for name, kind in kinds.items())


def check_columns(benchmark: str, schema: pa.Schema, needed: Sequence[Column]) -> None:
    """Check a table's columns before any row is read.

    Raises:
        DataError: Where columns are missing or of another type; names all of them.
    """
    missing = [column.name for column in needed if column.name not in schema.names]
    wrong = [
        f"{column.name} is {schema.field(column.name).type} instead of {column.kind.value}"
        for column in needed
        if column.name in schema.names and not _FITS[column.kind](schema.field(column.name).type)
    ]
    if not missing and not wrong:
        return
    problems = [f"there is no column {', '.join(missing)}"] * bool(missing) + wrong
    raise DataError(
        f"This table is not in the layout of {benchmark}: {'; '.join(problems)}.",
        f"It has the columns {', '.join(schema.names) or '(none)'}.",
        "Take the files of the split and revision that the benchmark names, or convert the columns.",
    )


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_texts(kind: pa.DataType) -> bool:
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and _is_text(kind.value_type)


def _is_picture(kind: pa.DataType) -> bool:
    inside = (
        kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    )
    return _is_binary(inside)


_FITS: dict[Kind, Callable[[pa.DataType], bool]] = {
    Kind.TEXT: _is_text,
    Kind.TEXTS: _is_texts,
    Kind.KEY: lambda kind: _is_text(kind) or types.is_integer(kind),
    Kind.INDEX: lambda kind: _is_text(kind) or types.is_integer(kind),
    Kind.NUMBER: lambda kind: _is_text(kind) or types.is_integer(kind) or types.is_floating(kind),
    Kind.PICTURE: _is_picture,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of a benchmark's table.

    Attributes:
        benchmark: Name of the benchmark, for errors.
        config: The configuration that the table belongs to; empty where there is one only.
        row: Its number in the table, from 0 on.
        values: Column → value, as ``to_pylist`` gives it.

    Every method raises ``DataError`` where the value is null, empty or of another type.
    """

    benchmark: str
    config: str = ""
    row: int
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The row as an id: its number, behind its configuration's name."""
        return f"{self.config}/{self.row}" if self.config else str(self.row)

    def text(self, column: str) -> str:
        """A text with something in it, as it stands there."""
        value = self.values.get(column)
        if not isinstance(value, str) or not value.strip():
            raise self.refused(column, f"holds {_shown(value)} instead of a text")
        return value

    def texts(self, column: str, *, some_empty: bool = False) -> tuple[str, ...]:
        """At least one text; none is empty, unless ``some_empty``, and then one is not."""
        value = self.values.get(column)
        if not isinstance(value, list | tuple) or not value:
            raise self.refused(column, f"holds {_shown(value)} instead of a list of texts")
        if not all(isinstance(text, str) for text in value):
            raise self.refused(column, "has a null among its texts")
        if not (any if some_empty else all)(text.strip() for text in value):
            raise self.refused(
                column, "holds empty texts only" if some_empty else "has an empty text in its list"
            )
        return tuple(value)

    def key(self, column: str) -> str:
        """A text or a whole number, as text."""
        value = self.values.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(column)

    def index(self, column: str, count: int) -> int:
        """The number of one of ``count`` options, from 0 on."""
        value = self.key(column).strip()
        if not value.isdecimal() or int(value) >= count:
            raise self.refused(column, f"holds {_shown(value)}, which is none of the {count} options")
        return int(value)

    def number(self, column: str) -> float:
        """A finite number of at least 0; a table of texts has it as a text."""
        value = self.values.get(column)
        try:
            number = float(value if isinstance(value, str | int | float) else "")
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise self.refused(column, f"holds {_shown(value)} instead of a number of at least 0")
        return number

    def clock(self, column: str) -> float:
        """A time such as ``00:01:30`` or ``1:30``, in seconds."""
        time = re.fullmatch(r"(?:(\d+):)?(\d+):(\d\d(?:\.\d+)?)", self.text(column).strip())
        if time is None:
            raise self.refused(
                column, f"holds {_shown(self.values[column])} instead of a time such as 00:01:30"
            )
        hours, minutes, seconds = (float(part or 0) for part in time.groups())
        return 3600 * hours + 60 * minutes + seconds

    def listed(self, column: str) -> tuple[str, ...]:
        """Texts that a table of texts holds as one: ``['red', 'green']``."""
        try:
            found = ast.literal_eval(self.text(column))
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise self.refused(
                column, f"holds {_shown(self.values[column])} instead of a list of texts"
            ) from error
        return replace(self, values={column: found}).texts(column)

    def picture(self, column: str) -> bytes:
        """The encoded bytes of a picture."""
        value = self.values.get(column)
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes) or not data:
            path = value.get("path") if isinstance(value, Mapping) else None
            holds = f"names the picture {path!r} without its bytes" if path else f"holds {_shown(value)}"
            raise self.refused(column, f"{holds} instead of an encoded picture")
        return data

    def refused(self, column: str, problem: str) -> DataError:
        """The error about one value of this row; ``problem`` goes on from the column's name."""
        config = f" ({self.config})" if self.config else ""
        return DataError(
            f"Row {self.row} of {self.benchmark}{config} cannot be used.",
            f"Its column {column} {problem}.",
            "Correct the row or leave it out, and state that the score is of fewer questions.",
        )


def _shown(value: Any) -> str:
    """A value for an error: short, and never a picture's bytes."""
    if value is None:
        return "null"
    if isinstance(value, bytes | list | tuple | Mapping):
        return f"an empty {type(value).__name__}" if not value else f"a {type(value).__name__}"
    return repr(value)[:60]
