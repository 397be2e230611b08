"""Subsets of a corpus: one folder each, chosen by name or pattern; several parts count as one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from casa_core.errors import ConfigError

_PART = re.compile(r"[-_ ]part[-_ ]\d+[-_ ]of[-_ ]\d+$", re.IGNORECASE)


def subset_of(file: str) -> str:
    """The subset a file belongs to: the folder it lies in, without ``-part-01-of-10`` at its end."""
    return _PART.sub("", PurePosixPath(file).parent.name)


def choose_subsets(
    source: str, files: Sequence[str], subsets: Sequence[str] | None, exclude_subsets: Sequence[str] = ()
) -> list[str]:
    """The files of the requested subsets, in their order.

    Args:
        source: The data source's name in the recipe.
        files: Names relative to the root.
        subsets: Names or shell patterns (``gqa*``); None for all. Case is ignored, and ``_``, ``-`` and
            blanks are the same: corpora and papers spell names differently.
        exclude_subsets: The same, to be left out.

    Raises:
        ConfigError: For a name or pattern that no subset has: a misspelling must not lose a corpus silently.
    """
    if not files:
        return []
    present = {file: _plain(subset_of(file)) for file in files}
    known = set(present.values())
    for pattern in (*(subsets or ()), *exclude_subsets):
        if not any(fnmatchcase(name, _plain(pattern)) for name in known):
            raise _unknown(source, pattern, sorted({subset_of(file) for file in files}))

    def asked_for(name: str) -> bool:
        wanted = subsets is None or any(fnmatchcase(name, _plain(pattern)) for pattern in subsets)
        return wanted and not any(fnmatchcase(name, _plain(pattern)) for pattern in exclude_subsets)

    return [file for file in files if asked_for(present[file])]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]+", "-", name.lower())


def _unknown(source: str, pattern: str, present: Sequence[str]) -> ConfigError:
    close = get_close_matches(_plain(pattern), [_plain(name) for name in present], n=3, cutoff=0.6)
    near = [name for name in present if _plain(name) in close]
    shown = ", ".join(near or present[:8]) + ("" if near or len(present) <= 8 else ", …")
    return ConfigError(
        f"Source {source!r} has no subset {pattern!r}.",
        f"A subset is the folder its files lie in; there are {len(present)}.",
        f"Did you mean: {shown}?" if near else f"Use one of: {shown}.",
    )
