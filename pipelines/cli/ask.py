"""``casa ask``: questions to the endpoint about pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from casa_core.printable import printable
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption, UrlOption
from pipelines.cli.show.format import print_json


def ask(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures, in order.", metavar="[IMAGE]...", exists=True, dir_okay=False),
    ] = None,
    *,
    question: Annotated[str, typer.Argument(help="What you want to know about them.", metavar="QUESTION")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Go on: each line is a further question, an empty one ends.")
    ] = False,
    url: UrlOption = None,
    model: Annotated[str | None, typer.Option(help="A served model; the first one by default.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Ask the endpoint a question about pictures.

    Examples:

      casa ask cat.png "What colour is it?"

      casa ask before.png after.png "What has changed?" --chat

      casa ask cat.png "Is there a dog?" --url http://gpu-box:8000 --json
    """
    from infra import endpoint_client
    from pipelines.cli.shared.run_handle import latest_run

    endpoint = url or latest_run(store).endpoint
    messages = [endpoint_client.user_turn(question, images or ())]
    while True:
        said = ""
        for piece in endpoint_client.answer(endpoint, messages, model=model):
            said += piece
            if not json_:
                print(printable(piece), end="", flush=True)
        if json_:
            pictures = [str(image) for image in images or ()]
            print_json({"images": pictures, "question": question, "answer": said})
        else:
            print()
        if not chat or not (question := _further_question(quiet=json_)):
            return
        messages += [{"role": "assistant", "content": said}, endpoint_client.user_turn(question)]


def _further_question(*, quiet: bool) -> str:
    """The next line of the user; empty at the end of the input."""
    try:
        return input("" if quiet or not sys.stdin.isatty() else "> ").strip()
    except EOFError:
        return ""
