"""``casa caption``: a video, streamed to the endpoint, and its live captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from casa_core.printable import printable
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption, UrlOption
from pipelines.cli.show.format import print_json_line


def caption(
    video: Annotated[
        Path, typer.Argument(help="A video file.", metavar="VIDEO", exists=True, dir_okay=False)
    ],
    query: Annotated[str, typer.Option(help="What to speak about.")] = "",
    realtime: Annotated[bool, typer.Option("--realtime", help="Send frames as a camera would.")] = False,
    url: UrlOption = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Stream a video to the endpoint and print what it says, as it says it.

    Examples:

      casa caption clip.mp4

      casa caption clip.mp4 --realtime --query "Describe what moves."

      casa caption clip.mp4 --json                one JSON object a line
    """
    from infra import endpoint_client
    from pipelines.cli.shared.run_handle import latest_run

    endpoint = url or latest_run(store).endpoint
    for event in endpoint_client.caption(endpoint, video, query=query, realtime=realtime):
        if json_:
            print_json_line(event)
        elif event.get("text"):
            print(f"{event['timestamp']:7.1f} s  {printable(event['text'])}", flush=True)
