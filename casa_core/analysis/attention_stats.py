"""Average attention by kind of token: image delimiters, image tokens, other text, the token itself (paper,
Figure 7 and Appendix A).

Two averages, both over heads, layers, queries and images:

* *share*: how much of its attention a text token spends on all tokens of a kind. Shares sum to 1.
* *per token*: the weight of one token of the kind, what Figure 7 shows. First averaged over the kind's tokens
  that a query can see, then over the queries that see any.

Queries are the text tokens of windows with an image, the template's tokens included. Where a query is itself
a delimiter, its weight on itself counts as *self*. Gates multiply what attention yields and are no part of
it. Image tokens are in raster order; group g are tokens g·n … g·n + n − 1 of each image a query sees.

Shape suffixes: T query (text) tokens, K keys, X columns of the sums: kinds, any kind, then image groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.analysis.forward import read_whole
from casa_core.analysis.probe import WindowPart, watching
from casa_core.decoding.plan import TokenChunk
from casa_core.errors import ConfigError, DataError
from casa_core.model import CasaForConditionalGeneration

Sums = NDArray[np.float64]

_DELIMITER, _IMAGE, _TEXT, _SELF, _ANY, _GROUPS = range(6)
"""Columns; image groups follow from ``_GROUPS`` on."""


@dataclass(frozen=True, slots=True)
class KindMean:
    """Average attention to a kind of token.

    Attributes:
        share: Share of a query's attention on all tokens of the kind; 0 to 1.
        per_token: Attention on one token of the kind; ``None`` where no query attends to any.
    """

    share: float
    per_token: float | None


@dataclass(frozen=True, slots=True)
class Kinds:
    """Average attention to each kind; the four shares sum to 1.

    Attributes:
        delimiter: The template's tokens around images, as far as they lie in the window.
        image: Image tokens.
        text: The window's other text before the query.
        itself: The query.
        image_groups: Image tokens once more, by group in raster order.
    """

    delimiter: KindMean
    image: KindMean
    text: KindMean
    itself: KindMean
    image_groups: tuple[KindMean, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTable:
    """Average attention by kind, over everything that was read.

    Attributes:
        whole: Over all fused layers.
        layers: Decoder layer → over it alone.
        even: Mean over queries of 1 / (tokens seen): the weight of each, were attention even.
        group: Image tokens of a group.
        queries, images, sequences: What was averaged over.
    """

    whole: Kinds
    layers: dict[int, Kinds]
    even: float
    group: int
    queries: int
    images: int
    sequences: int


def attention_by_kind(
    model: CasaForConditionalGeneration,
    sequences: Iterable[TokenChunk],
    *,
    delimiters: Collection[int] = (),
    group: int = 16,
) -> AttentionTable:
    """Average the attention of fusion layers by kind of token.

    One sequence is read at a time and only sums are kept, so that memory does not grow with their number.

    Args:
        model: With fusion layers, in evaluation mode. With ``cross_attention`` there are image tokens only.
        sequences: Whole conversations; see :mod:`casa_core.analysis.forward`.
        delimiters: Ids of the template's tokens around images:
            :func:`casa_core.analysis.forward.delimiter_ids`.
        group: Image tokens averaged together; 16 in the paper.

    Raises:
        ConfigError: If the model has no fusion layers, or ``group`` is below 1.
        DataError: If no text token of any sequence sees an image.
    """
    if group < 1:
        raise ConfigError(
            f"`group` = {group} is too small.", "It counts image tokens.", "Set it to 1 or more."
        )
    means = _Means()
    current: list[_Sequence] = []

    def look(layer: int, part: WindowPart, weights_TK: torch.Tensor) -> None:
        column_K = current[0].columns(part)
        if column_K is not None:
            means.add(layer, _sums(weights_TK, column_K, part.images))

    with watching(model, look):
        for sequence in sequences:
            current[:] = [_Sequence(sequence, frozenset(delimiters), group)]
            read_whole(model, sequence)
            means.sequences += 1
            means.images += len(sequence.image_tokens)
    return means.table(group)


@dataclass(frozen=True, slots=True)
class _Sequence:
    """The sequence being read, which decides the kind of each key of its windows."""

    sequence: TokenChunk
    delimiters: frozenset[int]
    group: int

    def columns(self, part: WindowPart) -> torch.Tensor | None:
        """(K,) the column of each key; the query's own is handled later. ``None`` for text without image."""
        if part.images == 0:
            return None
        text = part.text_T.tolist()
        columns: list[int] = []
        for position, tokens in zip(self.sequence.image_positions, self.sequence.image_tokens, strict=True):
            if position == text[0]:
                columns += [_GROUPS + token // self.group for token in range(tokens)]
        if len(part.key_K) > part.images:
            ids = self.sequence.ids
            columns += [_DELIMITER if ids[token] in self.delimiters else _TEXT for token in text]
        return torch.tensor(columns, device=part.key_K.device)


def _sums(weights_TK: torch.Tensor, column_K: torch.Tensor, images: int) -> Sums:
    """(3, X) sums over the queries of a window: shares, per-token means, queries that see the kind."""
    weights_TK = weights_TK.double()
    seen_TK = torch.ones_like(weights_TK)
    own_TK = torch.zeros_like(weights_TK)
    if len(column_K) > images:  # text keys: the t-th query is the t-th of them
        seen_TK[:, images:].tril_()
        own_TK[:, images:].fill_diagonal_(1.0)
    one_hot_KX = torch.nn.functional.one_hot(column_K, int(column_K.max()) + 1).double()
    share_TX = (weights_TK * (1 - own_TK)) @ one_hot_KX
    count_TX = (seen_TK - own_TK) @ one_hot_KX
    for column, among_TK in ((_SELF, own_TK), (_ANY, seen_TK)):
        share_TX[:, column] = (weights_TK * among_TK).sum(dim=1)
        count_TX[:, column] = among_TK.sum(dim=1)
    for sums_TX in (share_TX, count_TX):
        sums_TX[:, _IMAGE] = sums_TX[:, _GROUPS:].sum(dim=1)
    per_token_TX = share_TX / count_TX.clamp(min=1)
    return torch.stack([share_TX.sum(0), per_token_TX.sum(0), (count_TX > 0).double().sum(0)]).cpu().numpy()


@dataclass(slots=True)
class _Means:
    """Sums by layer, from which the means follow at any time."""

    by_layer: dict[int, Sums] = field(default_factory=dict)
    sequences: int = 0
    images: int = 0

    def add(self, layer: int, sums: Sums) -> None:
        """A window's sums; one with more image groups than any before makes room for them."""
        held = self.by_layer.get(layer, np.zeros((3, 0)))
        width = max(held.shape[1], sums.shape[1])
        self.by_layer[layer] = _widened(held, width) + _widened(sums, width)

    def table(self, group: int) -> AttentionTable:
        if not self.by_layer:
            raise DataError(
                f"No text token of {self.sequences} sequences attends to an image.",
                "There is no attention to average.",
                "Pass conversations with images; a blind model has none.",
            )
        total = np.sum(list(self.by_layer.values()), axis=0)
        queries = _queries(total)
        return AttentionTable(
            whole=_kinds(total),
            layers={layer: _kinds(sums) for layer, sums in sorted(self.by_layer.items())},
            even=float(total[1, _ANY] / queries),
            group=group,
            queries=round(queries / len(self.by_layer)),
            images=self.images,
            sequences=self.sequences,
        )


def _widened(sums: Sums, width: int) -> Sums:
    return np.pad(sums, ((0, 0), (0, width - sums.shape[1])))


def _queries(sums: Sums) -> float:
    """Every query counted sees an image."""
    return float(sums[2, _IMAGE])


def _kinds(sums: Sums) -> Kinds:
    queries = _queries(sums)
    means = [
        KindMean(float(share / queries), float(total / count) if count else None)
        for share, total, count in sums.T
    ]
    return Kinds(
        delimiter=means[_DELIMITER],
        image=means[_IMAGE],
        text=means[_TEXT],
        itself=means[_SELF],
        image_groups=tuple(means[_GROUPS:]),
    )
