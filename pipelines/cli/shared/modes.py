"""The modes of ``casa evaluate``: resolutions, masking, the image budget of a video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from casa_core.analysis.masking import Masking

MaxSideOption = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS,…", help="Largest side of a picture instead of the checkpoint's; a result for each."
    ),
]
MaskOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,…",
        help="Mask attention: self, random_text or random_token (paper, table 8); a result for each.",
    ),
]
VideoTokensOption = Annotated[
    int | None,
    typer.Option(
        help="Image tokens that a whole video is fitted to; by default the checkpoint's, else 46,080.", min=1
    ),
]


def sides(given: str | None) -> list[int | None]:
    """The resolutions of ``--max-side``; the checkpoint's own without it.

    Raises:
        ConfigError: Where one is no number.
    """
    from casa_core.errors import ConfigError

    try:
        return [int(side) for side in given.split(",")] if given else [None]
    except ValueError as error:
        raise ConfigError(
            f"`--max-side {given}` holds no numbers.", "", "Write pixels, such as 448,672,896."
        ) from error


def masks(given: str | None) -> list[Masking | None]:
    """The kinds of masking of ``--mask``; none without it.

    Raises:
        ConfigError: Where there is no such kind.
    """
    from casa_core.analysis.masking import MASKINGS
    from casa_core.errors import ConfigError

    names = given.split(",") if given else []
    if unknown := [name for name in names if name not in MASKINGS]:
        raise ConfigError(
            f"There is no masking {unknown[0]!r}.", f"There are {', '.join(MASKINGS)}.", "Name one of them."
        )
    return [name for name in MASKINGS if name in names] or [None]
