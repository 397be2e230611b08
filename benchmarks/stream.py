"""Live streams: what a frame costs as they grow older, and what a restored one has forgotten.

python -m benchmarks.stream frames [--frames 2000 --insertion-frames 500 --words 4]
python -m benchmarks.stream frames --bounded --frames 20000 --hidden 96 --layers 3 --side 64
python -m benchmarks.stream restore [--streams 50 --model CHECKPOINT]
python -m benchmarks.stream profile

Each prints a table and writes it, with its numbers, to ``benchmarks/results``. ``--bounded`` runs the stream
with bounded text KV alone, for long, and ends in PASS where neither its time nor its memory grows, or FAIL.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import stream_frames, stream_profile, stream_report, stream_restore
from benchmarks.measure import RESULTS, add_options, options_parser, publish
from benchmarks.models import Size


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    frames = commands.add_parser("frames", help="time and memory of a frame against the stream's age")
    add_options(
        frames,
        frames=2000,
        insertion_frames=(500, "insertion stops here"),
        words=(4, "generated about every frame"),
        bounded=(False, "only the stream with bounded text KV, and its control"),
    )
    frames.add_argument("--together", action="store_true", help="in one process: memory then means nothing")
    restore = commands.add_parser("restore", help="saved and restored streams beside those that went on")
    restore.add_argument("--model", type=Path, help="a checkpoint folder; random weights by default")
    add_options(
        restore,
        streams=50,
        latest=(40, "frame after which a stream is saved at most"),
        after=(20, "frames after the restore"),
    )
    profile = commands.add_parser("profile", help="where the time of a frame goes")
    add_options(profile, frames=150)
    for command in (frames, profile):
        add_options(command, hidden=256, layers=8, side=(128, "of a frame, pixels; 16 a token"))
    for command in (frames, restore, profile):
        add_options(command, results=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return {"frames": _frames, "restore": _restore, "profile": _profile}[options.command](options)


def _frames(options: argparse.Namespace) -> int:
    chosen = stream_frames.contenders(options.frames, options.insertion_frames, options.words)
    if options.bounded:
        chosen = [one for one in chosen if one.bounds is not None or one.starts_over]
    courses = stream_frames.run(chosen, _size(options), apart=not options.together)
    payload, text, picture = stream_report.report(courses)
    name = "stream_frames_bounded" if options.bounded else "stream_frames"
    text, flat = f"![]({name}.svg)\n\n{text}", stream_report.is_flat(courses)
    if options.bounded:
        text += f"\n{'PASS' if flat else 'FAIL'}\n"
    publish(name, "A stream's cost against its age", options, payload, text, "stream frames")
    (options.results / f"{name}.svg").write_text(picture)
    return 0 if flat or not options.bounded else 1


def _restore(options: argparse.Namespace) -> int:
    payload, text = stream_restore.run(options.streams, options.latest, options.after, options.model)
    name = "stream_restore" if options.model is None else "stream_restore_trained"
    title = "Restored streams beside those that went on"
    publish(name, title, options, payload, text, "stream restore")
    return 0


def _profile(options: argparse.Namespace) -> int:
    payload, text = stream_profile.run(_size(options), options.frames)
    title = "Where the time of a frame goes"
    publish("stream_profile", title, options, payload, text, "stream profile")
    return 0


def _size(options: argparse.Namespace) -> Size:
    return Size(hidden=options.hidden, layers=options.layers, side=options.side)


if __name__ == "__main__":
    sys.exit(main())
