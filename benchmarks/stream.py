"""Live streams: what a frame costs as they grow older, and what a restored one has forgotten.

python -m benchmarks.stream frames [--frames 2000 --insertion-frames 500 --words 4]
python -m benchmarks.stream restore [--streams 50 --model CHECKPOINT]
python -m benchmarks.stream profile

Each prints a table and writes it, with its numbers, to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import stream_frames, stream_profile, stream_report, stream_restore
from benchmarks.measure import RESULTS, heading, stamp, write_result
from benchmarks.models import Size


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    frames = commands.add_parser("frames", help="time and memory of a frame against the stream's age")
    frames.add_argument("--frames", type=int, default=2000)
    frames.add_argument("--insertion-frames", type=int, default=500, help="insertion stops here")
    frames.add_argument("--words", type=int, default=4, help="said about every frame")
    frames.add_argument("--together", action="store_true", help="in one process: memory then says nothing")
    restore = commands.add_parser("restore", help="saved and restored streams beside those that went on")
    restore.add_argument("--streams", type=int, default=50)
    restore.add_argument("--model", type=Path, help="a checkpoint folder; random weights by default")
    restore.add_argument("--latest", type=int, default=40, help="frame after which a stream is saved at most")
    restore.add_argument("--after", type=int, default=20, help="frames after the restore")
    profile = commands.add_parser("profile", help="where the time of a frame goes")
    profile.add_argument("--frames", type=int, default=150)
    for command in (frames, profile):
        command.add_argument("--hidden", type=int, default=256)
        command.add_argument("--layers", type=int, default=8)
        command.add_argument("--side", type=int, default=128, help="of a frame, pixels; 16 a token")
    for command in (frames, restore, profile):
        command.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    {"frames": _frames, "restore": _restore, "profile": _profile}[options.command](options)


def _frames(options: argparse.Namespace) -> None:
    chosen = stream_frames.contenders(options.frames, options.insertion_frames, options.words)
    courses = stream_frames.run(chosen, _size(options), apart=not options.together)
    payload, text, picture = stream_report.report(courses)
    said = stamp("python -m benchmarks.stream frames", vars(options))
    title = f"# A stream's cost against its age\n\n{heading(said)}\n![](stream_frames.svg)\n\n"
    write_result("stream_frames", said | payload, title + text, options.results)
    (options.results / "stream_frames.svg").write_text(picture)
    print(text)


def _restore(options: argparse.Namespace) -> None:
    payload, text = stream_restore.run(options.streams, options.latest, options.after, options.model)
    said = stamp("python -m benchmarks.stream restore", vars(options))
    title = f"# Restored streams beside those that went on\n\n{heading(said)}\n"
    name = "stream_restore" if options.model is None else "stream_restore_trained"
    write_result(name, said | payload, title + text, options.results)
    print(text)


def _profile(options: argparse.Namespace) -> None:
    payload, text = stream_profile.run(_size(options), options.frames)
    said = stamp("python -m benchmarks.stream profile", vars(options))
    title = f"# Where the time of a frame goes\n\n{heading(said)}\n"
    write_result("stream_profile", said | payload, title + text, options.results)
    print(text)


def _size(options: argparse.Namespace) -> Size:
    return Size(hidden=options.hidden, layers=options.layers, side=options.side)


if __name__ == "__main__":
    main()
