"""Captions become subtitle files whose cues are phrases; the live page's are held to the same files."""

from __future__ import annotations

from infra.subtitles import sub_rip, web_vtt
from tests.support.serve.subtitles import CAPTIONS, SRT, VTT


def test_close_words_are_one_cue_and_a_cue_ends_where_the_next_begins():
    assert web_vtt(CAPTIONS) == VTT
    assert sub_rip(CAPTIONS) == SRT


def test_long_talk_is_cut_and_line_breaks_within_words_do_not_end_a_cue():
    captions = [(number / 2, f"one{chr(10)}two three") for number in range(5)]
    lines = sub_rip(captions).split("\n")
    assert lines[2] == " ".join(["one two three"] * 4)
    assert lines[4:7] == ["2", "00:00:02,000 --> 00:00:04,000", "one two three"]


def test_no_captions_are_an_empty_file():
    assert (web_vtt([]), sub_rip([])) == ("WEBVTT\n\n", "")
