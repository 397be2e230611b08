"""The layout of a forward beyond its token ids: positions, documents, windows. Computed on the host.

Shape suffixes: T text tokens, N image tokens, B rows, L text tokens of a row, S stream tokens of a row (text
alone, or text and inserted image tokens), A position axes (1, or 3 for multimodal RoPE),
C width, X stream tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from casa_core.fusion.attention import Segments
from casa_core.fusion.config import FusionConfig
from casa_core.fusion.insertion import JointStream, joint_stream
from casa_core.fusion.segments import to_device
from casa_core.fusion.windows import IntArray, WindowRules, Windows, window_layout
from casa_core.inputs import Packing

if TYPE_CHECKING:
    from casa_core.config import CasaConfig


@dataclass(frozen=True, slots=True)
class StreamIndex:
    """How text and inserted image tokens form rows of one stream.

    Attributes:
        source_X: For each of the B·S stream positions, the index of its token among [text tokens, image
            tokens]; padding takes any.
        text_index_T: For each text token, its index in the flat stream.
    """

    source_X: torch.Tensor
    text_index_T: torch.Tensor
    rows: int

    def join(self, text_BLC: torch.Tensor, image_NC: torch.Tensor | None) -> torch.Tensor:
        """(B, L, C) text and (N, C) image tokens → (B, S, C)."""
        flat = text_BLC.flatten(0, 1)
        if image_NC is not None:
            flat = torch.cat([flat, image_NC.to(flat.dtype)])
        return flat.index_select(0, self.source_X).view(self.rows, -1, flat.shape[-1])

    def text(self, stream_BSC: torch.Tensor) -> torch.Tensor:
        """(B, S, C) → (B, L, C): image tokens left out."""
        text_TC = stream_BSC.flatten(0, 1).index_select(0, self.text_index_T)
        return text_TC.view(self.rows, -1, text_TC.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One forward's layout.

    Attributes:
        position_ABS: Positions in self-attention.
        windows: For models with fusion layers.
        stream: For models that insert image tokens.
        documents: Packed documents as causal segments; or
        attention_mask: (B, 1, L, keys), True where a token may attend; ``None`` for both: all earlier ones.
    """

    position_ABS: torch.Tensor
    windows: Windows | None = None
    stream: StreamIndex | None = None
    documents: Segments | None = None
    attention_mask: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayoutRules:
    """The part of a model's configuration that decides layouts.

    Attributes:
        axes: Position axes of the backbone's RoPE.
        fusion: The fusion settings.
        windows: How windows are counted.
    """

    axes: int
    fusion: FusionConfig
    windows: WindowRules = field(init=False)

    def __post_init__(self) -> None:
        axes = 3 if self.axes == 3 else 1
        rules = WindowRules(axes=axes, positions=self.fusion.positions, imageless=self.fusion.replaces)
        object.__setattr__(self, "windows", rules)

    @classmethod
    def of(cls, config: CasaConfig) -> LayoutRules:
        """The rules of a model."""
        return cls(config.position_axes, config.fusion_settings)

    def joint_stream(
        self, text_length: int, packing: Packing, first_positions: Sequence[int] | None = None
    ) -> JointStream:
        """Text and image tokens of some documents as one stream (insertion)."""
        compressed = self.fusion.kind == "qformer"
        tokens = [self.fusion.qformer_queries] * len(packing.image_tokens)
        return joint_stream(
            text_length=text_length,
            document_starts=packing.document_starts,
            image_positions=packing.image_positions,
            image_tokens=tokens if compressed else packing.image_tokens,
            image_grids=None if compressed or self.axes == 1 else packing.image_grids,
            axes=self.axes,
            first_positions=first_positions,
        )


def packed_layout(
    rules: LayoutRules, text_length: int, packing: Packing, device: torch.device | str
) -> Layout:
    """Layout of packed documents in one flat row, without a cache: what training runs."""
    starts = np.asarray(packing.document_starts, dtype=np.int64)
    if rules.fusion.inserts:
        stream = rules.joint_stream(text_length, packing)
        source = stream_source(stream, text_length)
        return Layout(
            position_ABS=to_device(stream.position_AS, device)[:, None],
            stream=StreamIndex(to_device(source, device), to_device(stream.text_index_T, device), 1),
            documents=Segments.build(stream.document_S, stream.document_S, len(starts), device),
        )
    index_T = np.arange(text_length)
    document_T = np.searchsorted(starts, index_T, side="right") - 1
    position_T = index_T - starts[document_T]
    windows = window_layout(
        text_length=text_length,
        document_starts=packing.document_starts,
        image_positions=packing.image_positions,
        image_tokens=packing.image_tokens,
        image_grids=packing.image_grids,
        text_positions=position_T,
        rules=rules.windows,
    )
    return Layout(
        position_ABS=to_device(position_T, device).expand(rules.axes, 1, -1),
        windows=windows,
        documents=Segments.build(document_T, document_T, len(starts), device),
    )


def stream_source(stream: JointStream, text_length: int) -> IntArray:
    """For each stream token, its index among [text tokens, image tokens]."""
    source_S = np.empty(len(stream.document_S), dtype=np.int64)
    source_S[stream.text_index_T] = np.arange(text_length)
    source_S[stream.image_index_N] = text_length + np.arange(len(stream.image_index_N))
    return source_S
