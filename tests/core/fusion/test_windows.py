"""Windows: who sees which picture, and at which position, against the definition read token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_core.errors import DataError
from casa_core.fusion.windows import WindowRules, Windows, WindowState, window_layout
from tests.support.core.layouts import lay_out, outlines
from tests.support.naive.windows import Place, naive_windows

PACKS = st.lists(outlines(), min_size=1, max_size=4)


def layout_of(documents: Sequence[Sequence[int]]) -> Windows:
    layout = lay_out(documents)
    return window_layout(
        text_length=layout.text_length,
        document_starts=layout.document_starts,
        image_positions=layout.image_positions,
        image_tokens=layout.image_tokens,
    )


def groups(windows: Sequence[object]) -> list[list[int]]:
    """Tokens by window, whatever the windows are called; tokens outside every window left out."""
    found: dict[object, list[int]] = {}
    for index, window in enumerate(windows):
        if window is not None and window != -1:
            found.setdefault(window, []).append(index)
    return sorted(found.values())


def names(text: Sequence[Place], image: Sequence[Place]) -> list[object]:
    return [place.window for place in [*text, *image]]


@given(PACKS)
def test_every_token_lies_in_the_window_and_at_the_position_of_the_definition(documents: list[list[int]]):
    windows = layout_of(documents)
    text, image = naive_windows(documents)
    ours = [*windows.text_window_T.tolist(), *windows.image_window_N.tolist()]
    assert groups(ours) == groups(names(text, image))
    assert windows.text_position_T.tolist() == [place.position for place in text]
    assert windows.image_position_AN[0].tolist() == [place.position for place in image]
    assert [window == -1 for window in windows.text_window_T] == [place.window is None for place in text]
    assert windows.count == len({place.window for place in image})
    assert windows.carried_tokens == 0


@given(PACKS)
def test_packing_changes_nothing_inside_a_document(documents: list[list[int]]):
    packed = layout_of(documents)
    text = image = 0
    for own in documents:
        alone = layout_of([own])
        here_T = slice(text, text + len(alone.text_window_T))
        here_N = slice(image, image + len(alone.image_window_N))
        assert packed.text_position_T[here_T].tolist() == alone.text_position_T.tolist()
        assert packed.image_position_AN[0, here_N].tolist() == alone.image_position_AN[0].tolist()
        assert groups([*packed.text_window_T[here_T], *packed.image_window_N[here_N]]) == groups(
            [*alone.text_window_T, *alone.image_window_N]
        )
        text, image = here_T.stop, here_N.stop


@given(st.data())
def test_a_document_read_in_pieces_has_the_windows_of_the_whole(data: st.DataObject):
    documents = data.draw(st.lists(outlines(), min_size=1, max_size=3))
    whole_text, whole_image = naive_windows(documents)
    pieces = [data.draw(cuts(own)) for own in documents]
    window_states: list[WindowState | None] = [None] * len(documents)
    in_sight: list[list[int]] = [[] for _ in documents]  # carried image tokens, by their number in the whole
    text_number, image_number = first_numbers(documents)
    for turn in range(max(map(len, pieces))):
        now = [own[turn] if turn < len(own) else [] for own in pieces]
        layout = lay_out(now)
        windows = window_layout(
            text_length=layout.text_length,
            document_starts=layout.document_starts,
            image_positions=layout.image_positions,
            image_tokens=layout.image_tokens,
            window_states=window_states,
        )
        # Number every token of this forward by its place in the whole.
        new = [[image_number[d] + n for n in range(sum(own))] for d, own in enumerate(now)]
        carried = list(chain.from_iterable(in_sight))
        images = [*carried, *chain.from_iterable(new)]
        texts = [text_number[d] + n for d, own in enumerate(now) for n in range(own.count(0))]
        assert windows.carried_tokens == len(carried)
        assert windows.text_position_T.tolist() == [whole_text[n].position for n in texts]
        assert windows.image_position_AN[0].tolist() == [
            whole_image[n].position for n in images[windows.carried_tokens :]
        ]
        assert groups([*windows.text_window_T, *windows.image_window_N]) == groups(
            [*(whole_text[n].window for n in texts), *(whole_image[n].window for n in images)]
        )
        window_states = windows.window_states()
        for d, own in enumerate(now):
            kept = np.flatnonzero(windows.image_window_N == windows.last_window_D[d])
            in_sight[d] = [images[n] for n in kept]
            text_number[d] += own.count(0)
            image_number[d] += sum(own)


@st.composite
def cuts(draw: st.DrawFn, outline: list[int]) -> list[list[int]]:
    """An outline cut after any of its tokens: a piece, like a document, ends with a token."""
    pieces, piece = [], []
    for tokens in outline:
        piece.append(tokens)
        if tokens == 0 and draw(st.booleans()):
            pieces.append(piece)
            piece = []
    return [*pieces, piece] if piece else pieces


def first_numbers(documents: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Number of each document's first text token and first image token in the whole."""
    text = np.cumsum([0, *(own.count(0) for own in documents)])[:-1]
    image = np.cumsum([0, *(sum(own) for own in documents)])[:-1]
    return text.tolist(), image.tolist()


def test_a_frames_stop_token_read_with_the_next_frame_still_sees_the_old_one():
    # Old window: 4 image tokens and 3 text tokens. Now come its stop token, then a frame of 6 tokens and its
    # text.
    windows = window_layout(
        text_length=3,
        document_starts=[0],
        image_positions=[1],
        image_tokens=[6],
        window_states=[WindowState(image_tokens=4, text_tokens=3, extent=4)],
    )
    assert windows.text_window_T.tolist() == [0, 1, 1]
    assert windows.text_position_T.tolist() == [4 + 3, 6 + 0, 6 + 1]
    assert windows.image_window_N.tolist() == [0] * 4 + [1] * 6
    assert windows.window_states() == [WindowState(image_tokens=6, text_tokens=2, extent=6)]


def test_text_alone_lies_in_no_window_and_carries_nothing():
    windows = layout_of([[0, 0, 0]])
    assert windows.count == 0
    assert windows.text_window_T.tolist() == [-1, -1, -1]
    assert windows.window_states() == [None]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"document_starts": [1]}, "not ascending from 0"),
        ({"document_starts": [0, 3, 2]}, "not ascending from 0"),
        ({"image_positions": [2, 1], "image_tokens": [1, 1]}, "unsorted"),
        ({"image_positions": [4], "image_tokens": [1]}, "outside the 4 text tokens"),
        ({"image_positions": [1], "image_tokens": []}, "1 image positions but 0 image sizes"),
    ],
)
def test_impossible_layouts_are_refused(layout: dict[str, list[int]], words: str):
    with pytest.raises(DataError, match=words):
        window_layout(**{"text_length": 4, "document_starts": [0], **layout})


def test_a_grid_takes_rows_and_columns_and_the_next_image_stands_after_its_longer_side():
    windows = window_layout(
        text_length=4,
        document_starts=[0],
        image_positions=[1, 1, 3],
        image_tokens=[6, 2, 1],
        image_grids=[(2, 3), (2, 1), (1, 1)],
        rules=WindowRules(axes=3),
    )
    time, row, column = windows.image_position_AN.tolist()
    assert time == [0] * 6 + [3] * 2 + [0]
    assert row == [0, 0, 0, 1, 1, 1, 3, 4, 0]
    assert column == [0, 1, 2, 0, 1, 2, 3, 3, 0]
    assert windows.text_position_T.tolist() == [0, 5, 6, 1], (
        "after 3 + 2 positions; after 1 in the last window"
    )
    assert windows.window_states() == [WindowState(image_tokens=1, text_tokens=1, extent=1)]


def test_text_without_an_image_in_sight_has_a_window_of_its_own_where_layers_replace_self_attention():
    windows = window_layout(
        text_length=7,
        document_starts=[0, 3, 5],
        image_positions=[2, 3],
        image_tokens=[4, 2],
        rules=WindowRules(imageless=True),
    )
    # Document 0: two leading tokens, then an image. Document 1: an image at once. Document 2: text alone.
    assert groups(windows.text_window_T.tolist()) == [[0, 1], [2], [3, 4], [5, 6]]
    assert windows.text_position_T.tolist() == [0, 1, 4, 2, 3, 0, 1]
    assert windows.window_states()[2] == WindowState(image_tokens=0, text_tokens=2, extent=0)
    further = window_layout(
        text_length=2,
        document_starts=[0],
        window_states=windows.window_states()[2:],
        rules=WindowRules(imageless=True),
    )
    assert further.text_position_T.tolist() == [2, 3]
    assert further.carried_text_window_M.tolist() == [0, 0]


def test_global_positions_are_the_texts_own_and_images_start_where_their_text_does():
    windows = window_layout(
        text_length=5,
        document_starts=[0],
        image_positions=[2, 4],
        image_tokens=[3, 2],
        text_positions=[10, 11, 12, 13, 14],
        rules=WindowRules(positions="global"),
    )
    assert windows.text_position_T.tolist() == [0, 0, 12, 13, 14]
    assert windows.image_position_AN.tolist() == [[12, 13, 14, 14, 15]]


def test_a_grid_that_does_not_hold_its_tokens_is_refused():
    with pytest.raises(DataError, match=r"Image grids \[\[2, 2\]\] do not hold the images' \[3\] tokens"):
        window_layout(
            text_length=1,
            document_starts=[0],
            image_positions=[0],
            image_tokens=[3],
            image_grids=[(2, 2)],
            rules=WindowRules(axes=3),
        )
