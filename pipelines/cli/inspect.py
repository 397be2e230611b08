"""``casa inspect``: what a checkpoint is, what it answers, and what it attends to as it generates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared.options import JsonOption
from pipelines.cli.show.format import print_json
from pipelines.dag.checkpoints import find_checkpoint, local_checkpoint

if TYPE_CHECKING:
    from casa_core.analysis.inspection import InspectedSample, Inspector
    from casa_core.engine.engine import Engine
    from pipelines.cards.inspection import Inspection
    from pipelines.storage.uri import Folder

QUESTION = "what color is the shape?"
FPS = 2.0
PAPER_GROUP = 16
FEWEST_GROUPS = 16


def inspect(
    folder: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, or the artifact of a train stage: a folder or an s3:// URI.",
            metavar="MODEL_FOLDER",
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture to ask about; a drawn one by default. May be repeated.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(
            help=f'What to ask: one for each --image in order, or one for all. Default: "{QUESTION}"'
        ),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="A video to watch as a live stream.", exists=True, dir_okay=False)
    ] = None,
    query: Annotated[str, typer.Option(help="What to speak about in the clip.")] = "",
    frames: Annotated[int, typer.Option(help="Frames of the clip to watch, two a second.", min=1)] = 16,
    max_tokens: Annotated[int, typer.Option(help="Bound on an answer, in tokens.", min=1)] = 32,
    group: Annotated[
        int | None,
        typer.Option(
            help=f"Image tokens to a point of the chart: {PAPER_GROUP}, or fewer for small pictures.",
            min=1,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random masking.")] = 0,
    page: Annotated[Path, typer.Option(help="Where the HTML page goes.", dir_okay=False)] = Path(
        "inspect.html"
    ),
    json_: JsonOption = False,
) -> None:
    """Look into a checkpoint: what it is, what it answers, where it looks, and what it cannot do without.

    Prints the answers and how text divides its attention (the paper's Figure 7).

    For models of kind casa: what is said when a token may not see itself (Table 8).

    Writes a page with charts, and a heat map over the picture for each word.

    Examples:

      casa inspect runs/train/4a84…/model

      casa inspect model --image cat.png --question "What is it?"

      casa inspect model --image a.png --image b.png --question "What is it?" --page both.html

      casa inspect model --clip clip.mp4 --query "describe what you see live"
    """
    from casa_core.analysis.inspection import Inspector

    asked = _pair(image or [], question or []) if image or question or clip is None else []
    checkpoint, engine = _load(folder)
    inspector = Inspector(engine, seed, max_tokens)
    inspected = [_ask(inspector, picture, text) for picture, text in asked]
    if clip is not None:
        inspected.append(inspector.clip(_frames(clip, frames), query, clip.name))
    _present(_inspection(checkpoint, inspector, inspected, group), page, as_json=json_)


def _pair(images: Sequence[Path], questions: Sequence[str]) -> list[tuple[Path | None, str]]:
    """Each picture with its question; ``None`` stands for the drawn picture."""
    from casa_core.errors import ConfigError

    pictures: list[Path | None] = [*images] or [None] * max(len(questions), 1)
    if len(questions) <= 1:
        question = questions[0] if questions else QUESTION
        return [(picture, question) for picture in pictures]
    if len(questions) != len(pictures):
        raise ConfigError(
            f"`--image` was given {len(pictures)} times, `--question` {len(questions)} times.",
            "The first question is about the first picture, and so on.",
            "Give each --image its --question, or one --question for all.",
        )
    return list(zip(pictures, questions, strict=True))


def _load(folder: str) -> tuple[Folder, Engine]:
    """The checkpoint that a folder is or has in it, and an engine with its weights."""
    from transformers.utils import logging

    from casa_core.engine.engine import Engine
    from pipelines.storage.uri import open_folder

    logging.disable_progress_bar()
    checkpoint = find_checkpoint(open_folder(folder))
    with local_checkpoint(checkpoint) as local:
        return checkpoint, Engine.from_pretrained(local)


def _name(folder: Folder) -> str:
    """A checkpoint's name: its folder's, or the fingerprint of the train stage's artifact that it is in."""
    folder = folder.absolute()
    return f"model {folder.parent.name[:12]}" if folder.name == "model" else folder.name


def _ask(inspector: Inspector, picture: Path | None, question: str) -> InspectedSample:
    if picture is None:
        return inspector.question(_drawn(), question, "a drawn picture")
    from casa_core.errors import MediaError

    try:
        return inspector.question(picture.read_bytes(), question, picture.name)
    except MediaError as error:
        why = f"{error.what} {error.why}"
        raise MediaError(error.reason, f"{picture} cannot be shown.", why, error.remedy) from error


def _drawn() -> bytes:
    """A red circle on a pale ground, as a PNG."""
    from casa_core.media.decode import encode_png
    from pipelines.data.generate.shapes import Shape, render

    side = 256
    circle = Shape("circle", "red", 0.36 * side, 0.36 * side)
    return encode_png(render(side, (238, 243, 250), (circle, (0.64 * side, 0.36 * side))))


def _frames(clip: Path, most: int) -> list[bytes]:
    from itertools import islice

    from casa_core.errors import MediaError
    from infra.endpoint_client import encoded_frames

    frames = [frame for _, frame in islice(encoded_frames(clip, FPS), most)]
    if not frames:
        what = f"{clip} has no frame that can be shown."
        raise MediaError("truncated_video", what, "", "Try another file.")
    return frames


def _inspection(
    folder: Folder, inspector: Inspector, inspected: Sequence[InspectedSample], group: int | None
) -> Inspection:
    from casa_core.analysis.attention_stats import attention_by_kind
    from casa_core.analysis.forward import delimiter_ids
    from pipelines.cards.inspection import Inspection
    from pipelines.cli.show.facts import facts, headline

    engine = inspector.engine
    sequences = [one.sequence for one in inspected]
    table = None
    if inspector.no_maps is None:
        smallest = min(tokens for sequence in sequences for tokens in sequence.image_tokens)
        table = attention_by_kind(
            engine.model,
            sequences,
            delimiters=delimiter_ids(engine.processor),
            group=group or max(1, min(PAPER_GROUP, smallest // FEWEST_GROUPS)),
        )
    return Inspection(
        name=_name(folder),
        headline=headline(engine),
        facts=facts(engine, folder),
        inspected=inspected,
        table=table,
        no_maps=inspector.no_maps,
        no_masking=inspector.no_masking,
    )


def _present(inspection: Inspection, page: Path, *, as_json: bool) -> None:
    from pipelines.cards.inspection import render
    from pipelines.cli.show.inspection import inspection_as_json, show_inspection
    from pipelines.storage.atomic import write_whole

    write_whole(page, render(inspection), parents=True)
    if as_json:
        print_json(inspection_as_json(inspection, page))
    else:
        show_inspection(inspection, page)
