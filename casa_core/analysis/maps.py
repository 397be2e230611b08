"""Attention maps: fusion layers' attention of a text token, laid out as the image's grid of tokens.

A token is predicted at the token before it, so the attention *for* a token is that of the token before it.

Shape suffixes: T query (text) tokens, K keys; R × C rows and columns of an image's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.analysis.forward import grids_of, read_whole
from casa_core.analysis.probe import WindowPart, watching
from casa_core.decoding.plan import TokenChunk
from casa_core.errors import DataError
from casa_core.model import CasaForConditionalGeneration

ImageMap = NDArray[np.float64]
"""(R, C): the weight of each image token."""


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """Attention of some text tokens to the images of their windows, averaged over heads.

    Attributes:
        tokens: For each token asked about, image → its map, averaged over the fused layers; the weights of
            one token's maps sum to the share of its attention that goes to images. Empty where it sees none.
        layers: Decoder layer → image → map, averaged over the tokens asked about that see the image.
    """

    tokens: list[dict[int, ImageMap]]
    layers: dict[int, dict[int, ImageMap]]


def attention_maps(
    model: CasaForConditionalGeneration, sequence: TokenChunk, tokens: Sequence[int]
) -> AttentionMaps:
    """Run a whole conversation and keep the attention maps of some text tokens, given by index.

    Raises:
        ConfigError: If the model has no fusion layers.
        DataError: If a token is not part of the sequence.
    """
    if tokens and not (min(tokens) >= 0 and max(tokens) < len(sequence.ids)):
        raise DataError(
            f"Token {max(tokens)} is not part of a sequence of {len(sequence.ids)}.",
            "Tokens are counted from 0.",
            "Name indices inside the sequence.",
        )
    grids = grids_of(model, sequence)
    # layer → token → its weights on the image tokens of its window, in order
    weights: dict[int, dict[int, NDArray[np.float64]]] = {}
    first: dict[int, int] = {}  # token → first text token of its window, where its images stand
    wanted = set(tokens)

    def look(layer: int, part: WindowPart, weights_TK: torch.Tensor) -> None:
        text = part.text_T.tolist()
        for query, token in enumerate(text):
            if token in wanted:
                first[token] = text[0]
                on_images = weights_TK[query, : part.images].double().cpu().numpy()
                weights.setdefault(layer, {})[token] = on_images

    with watching(model, look):
        read_whole(model, sequence)
    images = {token: _images_at(sequence, first[token]) for token in first}

    def laid_out(token: int, on_images: NDArray[np.float64]) -> dict[int, ImageMap]:
        shapes = {image: grids[image] for image in images[token]}
        ends = np.cumsum([rows * columns for rows, columns in shapes.values()])
        pieces = np.split(on_images, ends[:-1])
        return {image: piece.reshape(shapes[image]) for image, piece in zip(shapes, pieces, strict=True)}

    layers = {
        layer: _mean_maps([laid_out(token, own) for token, own in by_token.items()])
        for layer, by_token in sorted(weights.items())
    }
    by_token = [
        _mean_maps([laid_out(token, own[token]) for own in weights.values()]) if token in first else {}
        for token in tokens
    ]
    return AttentionMaps(by_token, layers)


def _images_at(sequence: TokenChunk, position: int) -> list[int]:
    """The images of the window whose text starts there."""
    return [image for image, at in enumerate(sequence.image_positions) if at == position]


def _mean_maps(maps: Sequence[dict[int, ImageMap]]) -> dict[int, ImageMap]:
    """The mean map of each image, over those that have it."""
    images = dict.fromkeys(image for own in maps for image in own)
    return {image: np.mean([own[image] for own in maps if image in own], axis=0) for image in images}
