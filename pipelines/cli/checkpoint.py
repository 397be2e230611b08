"""``casa inspect``: what a checkpoint is, what it says, and what it attends to while it says it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import JsonOption, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from casa_core.analysis.attention_stats import AttentionTable
    from casa_core.analysis.inspection import Examined, Examiner
    from casa_core.engine.engine import Engine
    from pipelines.cards.inspection import Inspection

QUESTION = "what color is the shape?"
FPS = 2.0
PAPER_GROUP = 16
FEWEST_GROUPS = 16


def inspect(
    folder: Annotated[
        Path, typer.Argument(help="A checkpoint, or the artifact of a train stage.", metavar="MODEL_FOLDER")
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
    from casa_core.analysis.inspection import Examiner

    asked = _pair(image or [], question or []) if image or question or clip is None else []
    folder = _found(folder)
    engine = _load(folder)
    examiner = Examiner(engine, seed, max_tokens)
    examined = [_ask(examiner, picture, text) for picture, text in asked]
    if clip is not None:
        examined.append(examiner.clip(_frames(clip, frames), query, clip.name))
    inspection = _inspection(folder, examiner, examined, group)
    _write(page, inspection)
    if json_:
        print_json(_as_json(inspection, page))
    else:
        _print(inspection, page)


def _pair(images: Sequence[Path], questions: Sequence[str]) -> list[tuple[Path | None, str]]:
    """Each picture with its question; ``None`` stands for the drawn picture."""
    from casa_core.errors import ConfigError

    pictures: list[Path | None] = [*images] or [None] * max(len(questions), 1)
    if len(questions) <= 1:
        question = questions[0] if questions else QUESTION
        return [(picture, question) for picture in pictures]
    if len(questions) != len(pictures):
        raise ConfigError(
            f"--image was given {len(pictures)} times, --question {len(questions)} times.",
            "the first question is about the first picture, and so on",
            "give each --image its --question, or one --question for all",
        )
    return list(zip(pictures, questions, strict=True))


def _found(folder: Path) -> Path:
    """The checkpoint, or the checkpoint inside a train stage's artifact."""
    from casa_core.errors import StoreError

    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise StoreError(
            f"{folder} is not a checkpoint",
            "it has no config.json" if folder.is_dir() else "there is no such folder",
            "`casa status --json` names the artifact of a run's train stage",
        )
    return folder


def _load(folder: Path) -> Engine:
    from transformers.utils import logging

    from casa_core.engine.engine import Engine

    logging.disable_progress_bar()
    return Engine.from_pretrained(folder)


def _name(folder: Path) -> str:
    """The folder's name; of the ``model`` folder of a train stage, what its artifact's fingerprint is."""
    folder = folder.absolute()
    return f"model {folder.parent.name[:12]}" if folder.name == "model" else folder.name


def _ask(examiner: Examiner, picture: Path | None, question: str) -> Examined:
    if picture is None:
        return examiner.question(_drawn(), question, "a drawn picture")
    return examiner.question(picture.read_bytes(), question, picture.name)


def _drawn() -> bytes:
    """A red circle on a pale ground, as a PNG."""
    from casa_core.media.decode import encode_png
    from pipelines.data.generate.shapes import Shape, render

    side = 256
    circle = Shape("circle", "red", 0.36 * side, 0.36 * side)
    return encode_png(render(side, (238, 243, 250), circle, (0.64 * side, 0.36 * side)))


def _frames(clip: Path, most: int) -> list[bytes]:
    from itertools import islice

    from casa_core.errors import MediaError
    from infra.endpoint_client import encoded_frames

    frames = [frame for _, frame in islice(encoded_frames(clip, FPS), most)]
    if not frames:
        raise MediaError("truncated_video", f"{clip} has no frame that can be shown", "", "try another file")
    return frames


def _inspection(
    folder: Path, examiner: Examiner, examined: Sequence[Examined], group: int | None
) -> Inspection:
    from casa_core.analysis.attention_stats import attention_by_kind
    from casa_core.analysis.forward import delimiter_ids
    from pipelines.cards.inspection import Inspection
    from pipelines.cli.facts import facts, headline

    engine = examiner.engine
    sequences = [one.sequence for one in examined]
    table = None
    if examiner.unwatched is None:
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
        examined=examined,
        table=table,
        unwatched=examiner.unwatched,
        unmasked=examiner.unmasked,
    )


def _write(page: Path, inspection: Inspection) -> None:
    from pipelines.cards.inspection import render

    page.parent.mkdir(parents=True, exist_ok=True)
    partial = page.with_name(f"{page.name}.partial")
    partial.write_text(render(inspection), encoding="utf-8")
    os.replace(partial, page)


def _as_json(inspection: Inspection, page: Path) -> dict[str, Any]:
    reasons = {"attention": inspection.unwatched, "masking": inspection.unmasked}
    return {
        "checkpoint": dict(inspection.facts),
        "conversations": [
            {
                "name": one.name,
                "question": one.question,
                "answer": one.answer,
                "masked": [asdict(answer) for answer in one.masked],
            }
            for one in inspection.examined
        ],
        "attention": None if inspection.table is None else asdict(inspection.table),
        "not_possible": {name: f"{why.what}: {why.why}" for name, why in reasons.items() if why is not None},
        "page": str(page.absolute()),
    }


def _print(inspection: Inspection, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    sheet = Table(box=None, show_header=False)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    for name, value in inspection.facts.items():
        sheet.add_row(name, value)
    console.print(inspection.headline, highlight=False)
    console.print(sheet)
    for one in inspection.examined:
        _print_conversation(console, one)
    if inspection.table is not None:
        _print_attention(console, inspection.table)
    reasons = {str(why.what): why.why for why in (inspection.unwatched, inspection.unmasked) if why}
    for what, why in reasons.items():
        console.print(f"[yellow]not possible[/]  {what}: {why}", highlight=False)
    # Never wrapped, so that a terminal can open it and a person can copy it.
    console.print(f"page: {page}", soft_wrap=True, highlight=False)


def _print_conversation(console: Console, one: Examined) -> None:
    from rich.table import Table
    from rich.text import Text

    from pipelines.cards.inspection import MASKED

    pictures = "" if len(one.pictures) == 1 else f", {len(one.pictures)} frames"
    tokens = sum(one.sequence.image_tokens)
    console.print(Text(f"\n{one.name}{pictures}, {tokens} image tokens", style="dim"))
    console.print(
        Text.assemble((f"{one.question or '(no question)'}  ", ""), (one.answer or "(nothing)", "bold"))
    )
    if not one.masked:
        return
    sheet = Table(box=None, header_style="bold")
    for column in ("no token attends to", "then it says", "log-likelihood"):
        sheet.add_column(column, justify="right" if column == "log-likelihood" else "left")
    for answer in one.masked:
        sheet.add_row(MASKED[answer.what], Text(answer.text or "(nothing)"), f"{answer.log_likelihood:.4f}")
    console.print(sheet)


def _print_attention(console: Console, means: AttentionTable) -> None:
    from rich.table import Table

    from pipelines.cards.attention import LABELS, kinds_of

    console.print(
        f"\nAttention of {means.queries} text tokens in {len(means.layers)} fused layers", highlight=False
    )
    sheet = Table(box=None, header_style="bold")
    for column in ("to", "share", "one token", "beside even"):
        sheet.add_column(column, justify="left" if column == "to" else "right")
    for name, mean in kinds_of(means.whole):
        assert mean.per_token is not None, "kinds_of leaves the others out"
        sheet.add_row(
            LABELS[name],
            f"{mean.share:.1%}",
            f"{mean.per_token:.2g}",
            f"{mean.per_token / means.even:.2g}-fold",
        )
    console.print(sheet)
