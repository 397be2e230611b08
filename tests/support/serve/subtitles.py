"""Captions, and the subtitle files that they are: written by hand."""

from __future__ import annotations

CAPTIONS = [(0.0, "a red"), (0.5, "square"), (1.5, "a dot"), (2.5, "now <blue> & green"), (3661.5, "the end")]
VTT = """WEBVTT

00:00:00.000 --> 00:00:01.500
a red square

00:00:01.500 --> 00:00:02.500
a dot

00:00:02.500 --> 00:00:04.500
now &lt;blue&gt; &amp; green

01:01:01.500 --> 01:01:03.500
the end
"""
SRT = """1
00:00:00,000 --> 00:00:01,500
a red square

2
00:00:01,500 --> 00:00:02,500
a dot

3
00:00:02,500 --> 00:00:04,500
now <blue> & green

4
01:01:01,500 --> 01:01:03,500
the end
"""
