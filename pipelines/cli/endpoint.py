"""``casa ask`` and ``casa caption``: talking to the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import DEFAULT_STORE, JsonOption, StoreOption, print_json

UrlOption = Annotated[
    str | None,
    typer.Option(help="The endpoint, http://host:port; by default that of the store's latest run."),
]


def ask(
    image: Annotated[Path, typer.Argument(help="A picture.", metavar="IMAGE", exists=True, dir_okay=False)],
    question: Annotated[str, typer.Argument(help="What you want to know about it.", metavar="QUESTION")],
    url: UrlOption = None,
    model: Annotated[str | None, typer.Option(help="A served model; the first one by default.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Ask the endpoint a question about a picture.

    Examples:

      casa ask cat.png "What colour is it?"

      casa ask cat.png "Is there a dog?" --url http://gpu-box:8000 --json
    """
    from infra import endpoint_client as client

    pieces = client.ask(url or _endpoint(store), image, question, model=model)
    if json_:
        print_json({"image": str(image), "question": question, "answer": "".join(pieces)})
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


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
    import json

    from infra import endpoint_client as client

    for event in client.caption(url or _endpoint(store), video, query=query, realtime=realtime):
        if json_:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif event.get("text"):
            print(f"{event['timestamp']:7.1f} s  {event['text']}", flush=True)


def _endpoint(store: Path) -> str:
    from pipelines.cli.session import latest_run

    return latest_run(store).endpoint
