"""What goes into a forward of the model, and what comes out: packing, images, output.

Shape suffixes: P patches, E values of a patch, N image tokens, I images, C width, A trained (answer) tokens,
B rows, L columns of a padded row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils.generic import ModelOutput

if TYPE_CHECKING:
    from casa_core.generation import CasaCache


IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "image_counts")
"""The image tensors of a batch in transformers' form, as :class:`CasaProcessor` returns them: patches (P, E),
grids (I, 3), and how many images stand right before each token (B, L)."""


def merged_grids(grids: Sequence[tuple[int, int]], merge: int) -> list[tuple[int, int]]:
    """(rows, columns) of each image's tokens.

    Args:
        grids: (rows, columns) of each image's patches.
        merge: Side of the square of patches merged into one image token.
    """
    return [(rows // merge, columns // merge) for rows, columns in grids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where documents start and images stand in a flat text.

    Attributes:
        document_starts: Ascending, the first at 0.
        image_positions: For each image, the index of the text token that follows it; ascending.
        image_tokens: Tokens of each image after the patch merge.
        image_grids: (rows, columns) of those tokens.
    """

    document_starts: Sequence[int]
    image_positions: Sequence[int] = ()
    image_tokens: Sequence[int] = ()
    image_grids: Sequence[tuple[int, int]] = ()


@dataclass(slots=True)
class ImageInputs:
    """Images of one forward, in reading order.

    Attributes:
        patches_PE: Flattened, normalised patches of all images.
        grids: (rows, columns) of patches of each image.
    """

    patches_PE: torch.Tensor
    grids: Sequence[tuple[int, int]]


@dataclass(slots=True)
class EmbeddedImages:
    """Images of one forward that went through the model's ``embed_images`` before, in reading order.

    Attributes:
        features_NC: Their image tokens.
        grids: (rows, columns) of patches of each image.
    """

    features_NC: torch.Tensor
    grids: Sequence[tuple[int, int]]


@dataclass
class CasaOutput(ModelOutput):
    """The output of a forward.

    Attributes:
        loss: Mean next-token loss over this call's answer tokens; ``None`` without labels or a loss mask.
        loss_sum: The same, summed: what training divides by the *global* count of answer tokens.
        trained_tokens: Number of answer tokens A.
        token_losses_A: (A,) loss of each answer token, float32, detached.
        logits: (B, kept, V), or (A, V) where a loss mask was given.
        hidden_states: (B, L, C) of the embeddings, and after each layer, the last one after the final norm;
            zeros in padding. Where they were asked for.
        cache: Keys and values of the rows, where a cache was asked for.
    """

    loss: torch.Tensor | None = None
    loss_sum: torch.Tensor | None = None
    trained_tokens: int | None = None
    token_losses_A: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    cache: CasaCache | None = None

    @property
    def past_key_values(self) -> CasaCache | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``cache`` by the name it had in transformers before 5.24."""
        return self.cache

    def get(self, key: str, default: Any = None) -> Any:
        """A field by its name, the cache by either of its own: loops of transformers ask so."""
        return super().get("cache" if key == "past_key_values" else key, default)
