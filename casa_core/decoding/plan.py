"""Plans one forward over cached sequences on the host: positions, windows, masks and stream indices.

Shape suffixes: B sequences, L new text tokens of a row (padded on the right), S new stream tokens of a row
(with inserted image tokens), X entries of all rows, A position axes, T text
tokens of all rows, P patches of an image, E numbers of a patch, N image tokens, C width.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch

from casa_core.fusion.layout import Layout, LayoutRules, StreamIndex, stream_source
from casa_core.fusion.windows import WindowRules, Windows, WindowState, window_layout
from casa_core.inputs import Packing, merged_grids


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """New tokens of one sequence, and the images among them.

    Attributes:
        ids: At least one token.
        image_positions: For each image, the index in ``ids`` of the token that follows it.
        patches_PE: Patches of each image.
        grids: (rows, columns) of patches of each image.
        image_tokens: Tokens of each image.
        features_NC: Image tokens of each image as the model's ``embed_images`` makes them, instead of
            patches.
    """

    ids: Sequence[int]
    image_positions: Sequence[int] = ()
    patches_PE: Sequence[torch.Tensor] = ()
    grids: Sequence[tuple[int, int]] = ()
    image_tokens: Sequence[int] = ()
    features_NC: Sequence[torch.Tensor] = ()

    @property
    def cost(self) -> int:
        """Tokens that a forward over it reads, those of its images included."""
        return len(self.ids) + sum(self.image_tokens)

    def after(self, ids: Sequence[int]) -> TokenChunk:
        """It, with further text before it."""
        positions = [len(ids) + position for position in self.image_positions]
        return replace(self, ids=[*ids, *self.ids], image_positions=positions)

    def cut(self, first: int, last: int) -> TokenChunk:
        """Its tokens ``first`` to ``last`` (not included), and the images before them."""
        of_images = slice(bisect_left(self.image_positions, first), bisect_left(self.image_positions, last))
        return TokenChunk(
            self.ids[first:last],
            [position - first for position in self.image_positions[of_images]],
            self.patches_PE[of_images],
            self.grids[of_images],
            self.image_tokens[of_images],
            self.features_NC[of_images],
        )

    def within(self, budget: int) -> int:
        """How many of its tokens, at least one, have a :attr:`cost` of ``budget`` at most."""
        costs = [1] * len(self.ids)
        for position, tokens in zip(self.image_positions, self.image_tokens, strict=True):
            costs[position] += tokens
        return max(bisect_right(list(accumulate(costs)), budget), 1)


@dataclass(slots=True)
class SequenceState:
    """One sequence's counts and window; keys and values are in the caches.

    Attributes:
        text_tokens: Text tokens read so far.
        dropped: How many of them its bounded text KV has dropped.
        position: Position of its next token in self-attention.
        window_state: Its current window.
    """

    text_tokens: int = 0
    dropped: int = 0
    position: int = 0
    window_state: WindowState | None = None


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """The model's properties that a plan depends on.

    Attributes:
        merge: Side of the square of patches merged into one image token.
    """

    rules: LayoutRules
    merge: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """One forward's plan.

    Attributes:
        layout: For the model.
        new_tokens: Text KV entries written in every row, padding included.
        lengths: KV entries of each row that are kept (padding is not).
        positions: Each row's next position, where a token does not advance it by one.
        documents: Each row's document in the windows.
    """

    layout: Layout
    new_tokens: int
    lengths: list[int]
    positions: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)


def plan_forward(
    rows: Sequence[TokenChunk], states: Sequence[SequenceState], lengths: Sequence[int], setting: PlanSettings
) -> ForwardPlan:
    """Plan a forward that appends one chunk, of at least one token, to each of some sequences.

    ``lengths`` are those of the sequences' text KV.
    """
    plan = _plan_stream if setting.rules.fusion.inserts else _plan_windows
    return plan(rows, states, lengths, setting)


def _plan_windows(
    rows: Sequence[TokenChunk], states: Sequence[SequenceState], lengths: Sequence[int], setting: PlanSettings
) -> ForwardPlan:
    """Each row is a document; its padding is another, which no token attends to."""
    longest = max(len(row.ids) for row in rows)
    starts: list[int] = []
    window_states: list[WindowState | None] = []
    positions: list[int] = []
    documents: list[int] = []
    for number, (row, state) in enumerate(zip(rows, states, strict=True)):
        base = number * longest
        documents.append(len(starts))
        starts.append(base)
        window_states.append(state.window_state)
        if len(row.ids) < longest:
            starts.append(base + len(row.ids))
            window_states.append(None)
        positions += [base + position for position in row.image_positions]
    first_B = np.array([state.position for state in states])
    position_BL = first_B[:, None] + np.arange(longest)
    rules = setting.rules.windows
    if len(rows) == longest == 1 and not positions and rules.positions == "window":
        windows = _next_word(window_states[0], rules)
    else:
        windows = window_layout(
            text_length=len(rows) * longest,
            document_starts=starts,
            image_positions=positions,
            image_tokens=[tokens for row in rows for tokens in row.image_tokens],
            image_grids=merged_grids([grid for row in rows for grid in row.grids], setting.merge),
            window_states=window_states,
            text_positions=position_BL.flatten(),
            rules=rules,
        )
    layout = Layout(
        position_ABS=torch.from_numpy(position_BL).expand(setting.rules.axes, -1, -1).to(setting.device),
        windows=windows,
        attention_mask=causal_mask(lengths, longest, setting.device),
    )
    return ForwardPlan(layout, longest, [len(row.ids) for row in rows], documents=documents)


@lru_cache(maxsize=64)
def _next_word(window_state: WindowState | None, rules: WindowRules) -> Windows:
    """The layout of one more token of a single stream; cached, as every frame repeats the same layouts."""
    return window_layout(text_length=1, document_starts=[0], window_states=[window_state], rules=rules)


def _plan_stream(
    rows: Sequence[TokenChunk], states: Sequence[SequenceState], lengths: Sequence[int], setting: PlanSettings
) -> ForwardPlan:
    """Insertion: image tokens are part of the text stream, so a row's stream is longer than its text."""
    news = [len(row.ids) for row in rows]
    longest, size = max(news), len(rows)
    total = sum(news)
    starts = [sum(news[:number]) for number in range(size)]
    stream = setting.rules.joint_stream(
        total,
        Packing(
            document_starts=starts,
            image_positions=[
                start + p for start, row in zip(starts, rows, strict=True) for p in row.image_positions
            ],
            image_tokens=[tokens for row in rows for tokens in row.image_tokens],
            image_grids=merged_grids([grid for row in rows for grid in row.grids], setting.merge),
        ),
        [state.position for state in states],
    )
    width = int(stream.length_D.max())
    column_S = np.concatenate([np.arange(length) for length in stream.length_D])
    index_S = stream.document_S * width + column_S
    padded_T = np.concatenate([n * longest + np.arange(length) for n, length in enumerate(news)])
    source_S = stream_source(stream, total)
    is_text_S = source_S < total
    source_X = np.zeros(size * width, dtype=np.int64)
    source_X[index_S] = np.where(
        is_text_S, padded_T[np.minimum(source_S, total - 1)], source_S - total + size * longest
    )
    position_AX = np.zeros((setting.rules.axes, size * width), dtype=np.int64)
    position_AX[:, index_S] = stream.position_AS
    text_index_X = np.zeros(size * longest, dtype=np.int64)
    text_index_X[padded_T] = index_S[stream.text_index_T]
    tensor = lambda array: torch.from_numpy(array).to(setting.device)  # noqa: E731
    layout = Layout(
        position_ABS=tensor(position_AX).view(setting.rules.axes, size, width),
        stream=StreamIndex(tensor(source_X), tensor(text_index_X), size),
        attention_mask=causal_mask(lengths, width, setting.device),
    )
    return ForwardPlan(layout, width, stream.length_D.tolist(), positions=stream.next_position_D.tolist())


def causal_mask(lengths: Sequence[int], new: int, device: torch.device) -> torch.Tensor | None:
    """(B or 1, 1, new, keys): a token attends to its row up to itself; ``None``: to all before it."""
    together = len(set(lengths)) == 1
    if together and (new == 1 or lengths[0] == 0):
        return None
    past_B = torch.tensor(lengths[:1] if together else lengths, device=device)
    entry_BL = past_B[:, None] + torch.arange(new, device=device)
    return (torch.arange(max(lengths) + new, device=device) <= entry_BL[..., None])[:, None]
