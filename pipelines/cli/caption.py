"""``casa caption``: a video, streamed to the endpoint, and its live captions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from casa_core.errors import MediaError
from casa_core.printable import printable
from infra import subtitles as subtitle_files
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption, UrlOption
from pipelines.cli.show.format import print_json_line
from pipelines.storage.atomic import write_whole


def _subtitle_file(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in subtitle_files.FORMATS:
        raise typer.BadParameter(f"{path.name} ends neither in .srt nor in .vtt")
    return path


def _mp4(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() != ".mp4":
        raise typer.BadParameter(f"{path.name} does not end in .mp4")
    return path


def caption(
    video: Annotated[
        Path, typer.Argument(help="A video file.", metavar="VIDEO", exists=True, dir_okay=False)
    ],
    query: Annotated[str, typer.Option(help="What to speak about.")] = "",
    model: Annotated[str | None, typer.Option(help="A served model; the first one by default.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Send frames as a camera would.")] = False,
    subtitles: Annotated[
        Path | None,
        typer.Option(help="Also write the captions to this .srt or .vtt file.", callback=_subtitle_file),
    ] = None,
    burned: Annotated[
        Path | None,
        typer.Option("--burn", help="Also write the video with its captions to this .mp4.", callback=_mp4),
    ] = None,
    url: UrlOption = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Stream a video to the endpoint and print what it says, as it says it.

    Examples:

      casa caption clip.mp4

      casa caption clip.mp4 --realtime --query "Describe what moves."

      casa caption clip.mp4 --subtitles clip.srt --burn clip-captioned.mp4

      casa caption clip.mp4 --json                one JSON object a line
    """
    from infra import caption_client
    from pipelines.cli.shared.run_handle import latest_run

    endpoint = url or latest_run(store).endpoint
    said: list[subtitle_files.Caption] = []
    damage: MediaError | None = None
    try:
        for event in caption_client.caption(endpoint, video, query=query, model=model, realtime=realtime):
            if event["type"] == "caption" and event["text"]:
                said.append((event["timestamp"], event["text"]))
            if json_:
                print_json_line(event)
            elif event.get("text"):
                print(f"{event['timestamp']:7.1f} s  {printable(event['text'])}", flush=True)
    except MediaError as error:
        if not said:
            raise
        damage = error  # what there is, is kept
    if subtitles is not None:
        write_whole(subtitles, subtitle_files.FORMATS[subtitles.suffix.lower()](said), parents=True)
        print(f"The captions are in {subtitles}.", file=sys.stderr)
    if damage is not None:
        raise damage
    if burned is not None:
        from infra.burn import burn

        print(f"Writing {burned} …", file=sys.stderr)
        burn(video, said, burned)
