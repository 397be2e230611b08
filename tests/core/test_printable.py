"""Texts of others never steer the terminal they are printed on."""

from __future__ import annotations

import io
import json

import pytest

from casa_core.printable import printable, spell_out
from tests.support.paths import ROOT

ATTACKS = {
    "clear the screen": ("a\x1b[2Jb", "a\\u001b[2Jb"),
    "set the title": ("\x1b]0;owned\x07", "\\u001b]0;owned\\u0007"),
    "the same in one byte": ("\x9b2J", "\\u009b2J"),
    "write over the line": ("good\rbad", "good\\u000dbad"),
    "delete what stands before": ("ab\x08\x7f", "ab\\u0008\\u007f"),
    "run backwards": ("\u202egnp.exe", "\\u202egnp.exe"),
    "nothing": ("tab\tline\nä 漢 🙂 \u200d", "tab\tline\nä 漢 🙂 \u200d"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_control_characters_are_spelled_out(name: str):
    text, expected = ATTACKS[name]
    assert printable(text) == expected


def test_json_keeps_its_content():
    value = {"text": "".join(map(chr, range(0x250))) + "\u202e\u2066"}
    shown = printable(json.dumps(value, indent=2, ensure_ascii=False))
    assert "\x1b" not in shown
    assert json.loads(shown) == value


def test_a_programs_log_may_keep_its_colours_and_nothing_else():
    assert printable("\x1b[1;31mred\x1b[0m\x1b[2J", colours=True) == "\x1b[1;31mred\x1b[0m\\u001b[2J"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "a -> b, e, ? ?, x"),
        ("latin-1", "a -> b, é, ? ?, \u00d7"),
        ("utf-8", "a → b, é, 漢 🙂, \u00d7"),
    ],
)
def test_a_terminal_of_another_encoding_shows_what_it_can(encoding: str, shown: str):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    spell_out(stream)
    stream.write("a → b, é, 漢 🙂, \u00d7")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == shown


def test_every_character_that_the_commands_print_has_a_spelling():
    texts = "".join(path.read_text() for path in (ROOT / "pipelines" / "cli").rglob("*.py"))
    others = {character for character in texts if ord(character) > 127}
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    spell_out(stream)
    stream.write("".join(sorted(others)))
    stream.flush()
    assert others
    assert b"?" not in stream.buffer.getvalue()
