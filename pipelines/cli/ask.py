"""``casa ask``: a question to the endpoint about a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from casa_core.printable import printable
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption, UrlOption
from pipelines.cli.show.format import print_json


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
    from infra import endpoint_client
    from pipelines.cli.shared.run_handle import latest_run

    pieces = endpoint_client.ask(url or latest_run(store).endpoint, image, question, model=model)
    if json_:
        print_json({"image": str(image), "question": question, "answer": "".join(pieces)})
        return
    for piece in pieces:
        print(printable(piece), end="", flush=True)
    print()
