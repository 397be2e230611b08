"""A batch of sequences with what they remember: text KV that grows with text, image KV of the current window
only.

Shape suffixes: B sequences, L new tokens of a row (left-padded), S cached and new text tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache

from casa_core.fusion.layers import ImageCache
from casa_core.model import CasaForConditionalGeneration, ImageInputs
from casa_core.windows import Carry, Windows, window_layout


@dataclass(frozen=True, slots=True)
class Extension:
    """New tokens of one sequence, and the images among them.

    Attributes:
        ids: At least one token.
        image_positions: For each image, the index in ``ids`` of the token that follows it.
        patches_PE: Patches of each image.
        grids: (rows, columns) of patches of each image.
        image_tokens: Tokens of each image.
    """

    ids: Sequence[int]
    image_positions: Sequence[int] = ()
    patches_PE: Sequence[torch.Tensor] = ()
    grids: Sequence[tuple[int, int]] = ()
    image_tokens: Sequence[int] = ()


@dataclass(slots=True)
class CachedSequences:
    """B sequences that grow together.

    Attributes:
        model: The fused model.
        size: B.
        text: Text keys and values; image tokens are never in it.
        images: Image keys and values of each sequence's current window.
        lengths: Text tokens of each sequence so far.
        carries: The window each sequence is in.
    """

    model: CasaForConditionalGeneration
    size: int
    text: DynamicCache = field(init=False)
    images: ImageCache = field(default_factory=ImageCache)
    lengths: list[int] = field(init=False)
    carries: list[Carry | None] = field(init=False)
    _key_valid_BS: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.text = DynamicCache(config=self.model.config.text_config)
        self.lengths = [0] * self.size
        self.carries = [None] * self.size
        self._key_valid_BS = torch.zeros(self.size, 0, dtype=torch.bool, device=self.model.device)

    @torch.inference_mode()
    def extend(self, rows: Sequence[Extension]) -> torch.Tensor:
        """Append tokens (and images) to every sequence.

        Args:
            rows: One extension a sequence, of any lengths: shorter ones are padded on the left.

        Returns:
            (B, V) logits after each sequence's last token.
        """
        device = self.model.device
        longest = max(len(row.ids) for row in rows)
        pads = [longest - len(row.ids) for row in rows]
        ids_BL = torch.tensor(
            [[0] * pad + list(row.ids) for pad, row in zip(pads, rows, strict=True)], device=device
        )
        position_BL = torch.tensor(
            [
                [0] * pad + list(range(past, past + len(row.ids)))
                for pad, past, row in zip(pads, self.lengths, rows, strict=True)
            ],
            device=device,
        )
        windows, documents = self._windows(rows, pads, longest)
        grids = [grid for row in rows for grid in row.grids]
        patches = [patches for row in rows for patches in row.patches_PE]
        output = self.model(
            ids_BL,
            position_BL,
            windows=windows,
            images=ImageInputs(torch.cat(patches).to(device), grids) if patches else None,
            attention_mask=self._mask(pads, longest),
            past_key_values=self.text,
            image_cache=self.images,
            logits_to_keep=1,
        )
        self._remember(rows, windows, documents)
        return output.logits[:, -1]

    def _windows(
        self, rows: Sequence[Extension], pads: Sequence[int], longest: int
    ) -> tuple[Windows, _Documents]:
        """Each row is a document; its left padding is another, which sees nothing."""
        starts: list[int] = []
        carries: list[Carry | None] = []
        positions: list[int] = []
        real: list[int] = []
        for row_number, (row, pad) in enumerate(zip(rows, pads, strict=True)):
            base = row_number * longest
            if pad:
                starts.append(base)
                carries.append(None)
            real.append(len(starts))
            starts.append(base + pad)
            carries.append(self.carries[row_number])
            positions += [base + pad + position for position in row.image_positions]
        windows = window_layout(
            text_length=self.size * longest,
            document_starts=starts,
            image_positions=positions,
            image_tokens=[tokens for row in rows for tokens in row.image_tokens],
            carries=carries,
        )
        return windows, _Documents(starts, [*starts[1:], self.size * longest], real)

    def _mask(self, pads: Sequence[int], longest: int) -> torch.Tensor | None:
        """(B, 1, L, S): a token attends to its own sequence's real tokens up to itself."""
        device = self._key_valid_BS.device
        new_valid_BL = torch.arange(longest, device=device) >= torch.tensor(pads, device=device)[:, None]
        self._key_valid_BS = torch.cat([self._key_valid_BS, new_valid_BL], dim=1)
        if longest == 1 and bool(self._key_valid_BS.all()):
            return None
        total = self._key_valid_BS.shape[1]
        index_L = torch.arange(total - longest, total, device=device)
        causal_LS = torch.arange(total, device=device) <= index_L[:, None]
        itself_LS = torch.arange(total, device=device) == index_L[:, None]
        # A padding query attends to itself, so that its softmax is defined; nobody else ever sees its values.
        return ((self._key_valid_BS[:, None] & causal_LS) | itself_LS)[:, None]

    def _remember(self, rows: Sequence[Extension], windows: Windows, documents: _Documents) -> None:
        """Advance lengths and windows; drop the images of windows that ended."""
        self.lengths = [past + len(row.ids) for past, row in zip(self.lengths, rows, strict=True)]
        carries = windows.carries(documents.ends, documents.starts)
        self.carries = [carries[index] for index in documents.real]
        if not any(row.image_positions for row in rows):
            return
        kept = [windows.last_window_D[index] for index in documents.real]
        index_N = np.concatenate(
            [np.flatnonzero(windows.image_window_N == window) for window in kept if window >= 0]
        )
        if len(index_N) != len(windows.image_window_N) or (index_N != np.arange(len(index_N))).any():
            self.images.keep(torch.from_numpy(index_N).to(self.model.device))


@dataclass(frozen=True, slots=True)
class _Documents:
    """Where documents lie in the flat text, and which of them are sequences rather than padding."""

    starts: list[int]
    ends: list[int]
    real: list[int]
