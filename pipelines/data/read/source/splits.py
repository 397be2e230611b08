"""Which files of a corpus are trained on, which are held out, and which are not read.

A file is held out where its name, or that of a folder it lies in, has one of ``HELD_OUT`` as a word of its
own: ``val-0.jsonl``, ``test/0.parquet``, ``val2017.tar``, ``testA.jsonl``, ``XTest.jsonl``, but not
``testimonials.jsonl`` or ``devices/0``. Words end at digits, signs and where capitals begin. Validation and
test files alike are the split ``test``: nothing here tunes on one and reports on the other.
A word that only ends so (``perceptiontest``, ``trainval``) is trained on, and named in the headline, unless
it is an ordinary one (``latest``) or one of ``_OWN`` stands before it (``mytest``): then it is held out.
A generated corpus states its splits in ``README.json``; a recipe's ``splits`` overrides both.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from casa_core.errors import ConfigError, DataError
from pipelines.data.read.source.files import Files

SPLITS = ("train", "test")
UNUSED = "unused"
"""The name in a recipe's ``splits`` for files that are not to be read."""
HELD_OUT = frozenset(
    {"test", "tests", "testing", "testdev", "eval", "evals", "evaluation", "val", "valid", "validation"}
    | {"minival", "dev", "heldout", "holdout"}
)
README = "README.json"
_WORD = re.compile(r"[^\W\d_]+")
_OWN = "my|our|new|old|full|all|sub|mini|small|tiny|final|hidden|private|public"
_JOINED = re.compile(
    r"(test|val|valid|validation|dev|eval)(sets?|data|split|mini|std|core|dev|test|v|[abc])|"
    rf"({_OWN})(tests?|testing|val|valid|validation|dev|eval)"
)
"""Words that are written as one with what stands beside them: testset, testmini, TESTA, mytest."""
_TWO = re.compile(r"(held|hold)[\W_]*out", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Borders of words in ``testA``, ``valSet`` and ``XTest``."""
_ENDS_SO = re.compile(r"\w+(tests?|testing|val|valid|validation|eval|dev|heldout|holdout)")
_ORDINARY = frozenset(
    {"latest", "greatest", "fastest", "shortest", "smartest", "brightest", "lightest", "hottest", "softest"}
    | {"contest", "contests", "protest", "protests", "attest", "detest", "contesting", "protesting"}
    | {"invalid", "interval", "festival", "carnival", "arrival", "retrieval", "approval", "removal", "oval"}
    | {"survival", "revival", "archival", "naval", "rival", "medieval", "primeval"}
)
"""Words of ordinary language that end as the name of a held-out file does."""
_DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|notice|citation|dataset_infos?)\b.*|.*\.(md|rst|pdf|bib)", re.IGNORECASE
)
_REMEDIES = {
    (".csv", ".tsv", ".xlsx"): "Write tables as JSONL or parquet.",
    (".json",): "A .json file is read that is one array of records; lines of JSON are called .jsonl.",
    (".tar.gz", ".tgz"): "Unpack .tar.gz to .tar: `gunzip`.",
    (".json.gz", ".parquet.gz", ".jsonl.zst", ".jsonl.xz", ".7z", ".rar"): "Unpack what is packed.",
    (".txt",): "`tar --sort=name -cf corpus.tar .` makes pictures and texts of one name a WebDataset.",
}
"""Suffixes of files that nobody reads → what makes records of them."""
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".lz4"})


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What becomes of each file of a corpus.

    Attributes:
        splits: ``train`` and ``test`` → the files read, in order.
        sizes: Each of these → its bytes.
        excluded: Files that a setting of the recipe leaves out.
        unread: Files that no reader of this layout reads; pictures and videos that records may name, and
            documents about the corpus, are none of them.
        links: Links that are a second name of something, or lead nowhere.
        notes: What else a user should know.
        suffixes: How names of files end that the layout's records lie in.
    """

    splits: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]
    excluded: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    suffixes: tuple[str, ...] = ()

    def summary(self) -> str:
        """``not read: 3 .csv, 1 .tar.gz``, and the notes; empty where there is nothing of the kind."""
        counts = Counter(map(suffix_of, self.unread))
        listed = [f"{count} {suffix}" for suffix, count in counts.most_common()]
        listed += [f"{len(self.links)} link{'s' * (len(self.links) > 1)}"] if self.links else []
        return "; ".join([*([f"not read: {', '.join(listed)}"] if listed else []), *self.notes])

    def to_json(self) -> dict[str, Any]:
        """As a card holds it: how many files each split has, and of the others the counts and a few names."""
        others: dict[str, list[str]] = {}
        for name in self.unread:
            others.setdefault(suffix_of(name), []).append(name)
        others |= {"links": list(self.links)} if self.links else {}
        return {
            "read": {split: len(names) for split, names in self.splits.items()},
            "excluded": len(self.excluded),
            "not_read": {
                kind: {"files": len(names), "examples": names[:3]} for kind, names in sorted(others.items())
            },
            "notes": list(self.notes),
        }


def no_training_records(source: str, found: Inventory) -> ConfigError:
    """What is wrong with a source whose files hold nothing to train on, and what to do about it."""
    trained, held_out = found.splits.get("train", ()), found.splits.get("test", ())
    kinds = ", ".join(found.suffixes)
    others = [f"{len(held_out)} held out by their names"] if held_out else []
    others += [found.summary()] if found.summary() else []
    why = (
        f"{trained[0]} is empty." if trained else f"No file of its layout ({kinds}) was found there"
        f"{': ' if others else ''}{'; '.join(others)}."
    )  # fmt: skip
    unread = {suffix_of(name) for name in found.unread}
    remedies = [remedy for suffixes, remedy in _REMEDIES.items() if unread & set(suffixes)]
    remedies += ["Name files to train on in `splits`."] if held_out else []
    return ConfigError(
        f"Source {source!r} has no training records.",
        why,
        " ".join(["Check the source's path and reader.", *remedies]),
    )


def take_inventory(
    files: Files,
    *,
    suffixes: Sequence[str],
    media: Sequence[str] = (),
    splits: Mapping[str, Sequence[str]] | None = None,
    wanted: Callable[[Sequence[str]], Sequence[str]] = lambda names: names,
    is_read: Callable[[str], bool] = lambda name: True,
) -> Inventory:
    """Assign each file of a corpus.

    Args:
        suffixes: Suffixes of the files that the layout's records lie in, in small letters.
        media: Suffixes of files that records may name.
        splits: A recipe's: split, or ``unused`` → patterns of names relative to the root. Files that none of
            them matches go by their names.
        wanted: Picks, from the files of one split, those that the recipe asks for.
        is_read: Whether a file with such a suffix holds records at all.

    Raises:
        ConfigError: For a pattern that matches nothing, or a file that patterns of two splits match.
        DataError: Where ``README.json`` lists a file that is not there.
    """
    named = [name for name in files.names(tuple(suffixes)) if not is_document(name)]
    names = [name for name, read in zip(named, files.map(is_read, named), strict=True) if read]
    stated, notes = _stated(files)
    chosen = _chosen(names, splits or {})
    split_of = _named(names, stated) | chosen
    read = {split: tuple(wanted([name for name in names if split_of[name] == split])) for split in SPLITS}
    kept = {name for own in read.values() for name in own}
    listing, known = files.listing, set(names)
    return Inventory(
        splits=read,
        sizes={name: files.size(name) for own in read.values() for name in own},
        excluded=tuple(name for name in names if name not in kept),
        unread=tuple(
            name
            for name in files.contents
            if not (name in known or name in listing.doubles or is_document(name))
            and not name.lower().endswith(tuple(media))
            and not _serves(files, name, known, tuple(media))
        ),
        links=(*listing.doubles, *listing.dangling),
        suffixes=tuple(suffixes),
        notes=(*notes, *_doubts([name for name in read["train"] if stated is None and name not in chosen])),
    )


def _serves(files: Files, name: str, known: set[str], media: tuple[str, ...]) -> bool:
    """Whether an archive holds files that are read, or that records may name."""
    return name in files.archives and any(
        f"{name}/{inner}" in known or (media and inner.lower().endswith(media)) for inner in files.index(name)
    )


def split_of_name(name: str) -> str:
    """``test`` where a word of the name or of its folders says so, otherwise ``train``."""
    words = _words(name)
    known = HELD_OUT & words or any(map(_JOINED.fullmatch, words)) or _TWO.search(name)
    return "test" if known else "train"


def _words(name: str) -> set[str]:
    """In small letters, with capitals as borders and without."""
    return {word.lower() for form in (name, _CAMEL.sub(" ", name)) for word in _WORD.findall(form)}


def _doubts(trained: Sequence[str]) -> list[str]:
    """``trained on in spite of its name, `photostest`: 2 files``, where a name may mean a held-out file."""
    counts = Counter(
        word
        for name in trained
        for word in _words(str(PurePosixPath(name).with_suffix("")))
        if _ENDS_SO.fullmatch(word) and word not in _ORDINARY
    )
    return [
        f"trained on in spite of its name, `{word}`: {count} file{'s' * (count > 1)} "
        "(held out if `splits` says so)"
        for word, count in sorted(counts.items())
    ]


def is_document(name: str) -> bool:
    """Whether a file is about the corpus, by its name: a README, a licence."""
    return _DOCUMENTS.fullmatch(PurePosixPath(name).name) is not None


def suffix_of(name: str) -> str:
    """A file's suffix in small letters, with the one before it where it is of a packed file: ``.tar.gz``."""
    suffixes = PurePosixPath(name.lower()).suffixes
    count = 2 if len(suffixes) > 1 and suffixes[-1] in _PACKED else 1
    return "".join(suffixes[-count:]) or "without suffix"


def _named(names: Sequence[str], stated: Mapping[str, Sequence[str]] | None) -> dict[str, str]:
    if stated is None:
        return {name: split_of_name(str(PurePosixPath(name).with_suffix(""))) for name in names}
    listed = {name: split for split, own in stated.items() for name in own}
    return {name: listed.get(name, UNUSED) for name in names}


def _stated(files: Files) -> tuple[dict[str, list[str]] | None, tuple[str, ...]]:
    """Splits that a ``README.json`` of the form ``casa`` writes states; a note where there is another."""
    if README not in files.listing.files:
        return None, ()
    try:
        splits = json.loads(files.read(README).decode("utf-8-sig"))["splits"]
        own = isinstance(splits, dict) and splits.keys() <= set(SPLITS) and all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in splits.values()
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError):
        own, splits = False, {}
    if not own:
        return None, (f"{README} is of another origin: it says nothing about splits here",)
    gone = [name for names in splits.values() for name in names if name not in files.listing.files]
    if gone:
        raise DataError(
            f"{README} of {files.root} lists {gone[0]!r}, which is not there.",
            f"{len(gone)} of the files it lists are missing.",
            f"Bring them back, or delete {README} to have files split by their names.",
        )
    return splits, ()


def _chosen(names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for split, patterns in splits.items():
        for pattern in patterns:
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched:
                raise ConfigError(
                    f"`splits` names {pattern!r}, and no file of the corpus is called so.",
                    f"Files are named relative to its folder, for example {', '.join(names[:3]) or 'none'}.",
                    "Correct the pattern; * stands for any characters.",
                )
            for name in matched:
                if found.setdefault(name, split) != split:
                    raise ConfigError(
                        f"`splits` puts {name} into {found[name]} and into {split}.", "", "Choose one."
                    )
    return found
