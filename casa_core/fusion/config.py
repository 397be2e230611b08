"""The settings of a fusion: which mechanism, where in the block, on which layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from casa_core.errors import ConfigError

FusionKind = Literal["cross_attention", "casa", "insertion", "qformer"]
Placement = Literal["parallel", "before", "after", "replace"]
Positions = Literal["window", "global"]
ImageNorm = Literal["block_input_norm", "own", "none"]
TextNorm = Literal["block_input_norm", "own"]
Gate = Literal["none", "adaptive_sigmoid", "tanh"]
FusionInit = Literal["self_attention", "zero_output"]
Layers = str | int | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """How images enter the language model.

    x are text tokens, y image tokens, F the fusion layer, SA the block's self-attention, n its input norm.

    Attributes:
        kind: ``cross_attention``: a text token attends to the image tokens of its window (paper, eq. 2;
            version 2's CA). ``casa``: to those and to the window's text up to itself (eq. 3; version 1's
            CASA). ``insertion``: image tokens join the text stream and pass through every layer (eq. 1).
            ``qformer``: the same, compressed to ``qformer_queries`` tokens per image first.
        placement: ``parallel`` ⊕: x + SA(n(x)) + F(n(x)). ``before`` →: x + F(n(x)), then self-attention.
            ``after``: self-attention, then x + F(n(x)). ``replace`` ∨: x + F(n(x)) instead of
            self-attention, with self-attention's own projections; ``casa`` only.
        layers: Which decoder layers are fused: ``all``; ``n``: every n-th, the last layer of each group of n;
            ``first:n``; ``first_and_last:n``; a tuple of indices; ``auto``: every 4th for ``replace`` (paper,
            Table 7), all otherwise.
        shared_projections: F uses the block's self-attention projections (version 2's CA🔗): no new weights.
        gate: What multiplies F. ``adaptive_sigmoid``: sigmoid(w·n(x) + b), one number per token, after
            mPLUG-Owl3 (the paper's gated CA). ``tanh``: tanh(α), one number per layer, 0 at the start
            (Flamingo).
        image_ffn: Image tokens pass through each block's feed-forward network too: y + FFN(n₂(y)), with the
            block's own weights and second norm (paper, Table 5; version 2's CA with image FFNs).
        image_norm: What normalises image tokens before K and V. ``block_input_norm``: the block's own,
            because projections copied from self-attention expect inputs of that scale; no new parameters.
            ``own``: a norm of the layer's own, started as a copy of it. ``none``: nothing.
        text_norm: What normalises text before F's projections: ``block_input_norm`` or ``own``, as above.
        positions: RoPE positions inside F, through the backbone's own RoPE (B.2). ``window``: the window's
            image tokens stand first, 0 … in raster order (multimodal RoPE: each image's grid, the next image
            after the larger side of the one before), the window's j-th text token j positions after them.
            ``global``: text keeps its position in self-attention, and the window's images start at the
            position of its first text token. The paper leaves this open; a count of the joint sequence would
            equal ``window``, because RoPE is relative. Either way image keys can be cached after RoPE for
            as long as the window lasts.
        qformer_queries: Tokens per image after compression; 32, 64 and 128 in the paper.
        qformer_depth: Transformer blocks of the Q-Former.
        init: ``self_attention``: q, k, v, o start as a copy of the same block's self-attention (paper, 4.1).
            ``zero_output``: the same, with the output projection zeroed, so that an untrained fused model is
            exactly its backbone; the better start for a pretrained backbone that must not be disturbed.
    """

    kind: FusionKind = "cross_attention"
    placement: Placement = "parallel"
    layers: Layers = "auto"
    shared_projections: bool = False
    gate: Gate = "none"
    image_ffn: bool = False
    image_norm: ImageNorm = "block_input_norm"
    text_norm: TextNorm = "block_input_norm"
    positions: Positions = "window"
    qformer_queries: int = 64
    qformer_depth: int = 1
    init: FusionInit = "self_attention"

    def __post_init__(self) -> None:
        choices = {
            "kind": FusionKind,
            "placement": Placement,
            "gate": Gate,
            "image_norm": ImageNorm,
            "text_norm": TextNorm,
            "positions": Positions,
            "init": FusionInit,
        }
        for name, literal in choices.items():
            value = getattr(self, name)
            if value not in get_args(literal):
                raise ConfigError(
                    f"`fusion.{name} = {value!r}` is not available.",
                    f"Expected one of {', '.join(map(repr, get_args(literal)))}.",
                    f"Set model.fusion.{name} to one of them.",
                )
        for name in ("qformer_queries", "qformer_depth"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"`fusion.{name} = {getattr(self, name)!r}` is too small.",
                    "It counts from 1.",
                    f"Set model.fusion.{name} to 1 or more.",
                )
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        self._check_combination()

    @property
    def inserts(self) -> bool:
        """Image tokens are part of the text stream: no fusion layers."""
        return self.kind in ("insertion", "qformer")

    @property
    def attends_text(self) -> bool:
        """The fusion layers have text keys too (eq. 3)."""
        return self.kind == "casa"

    @property
    def replaces(self) -> bool:
        """∨: fusion layers replace self-attention."""
        return self.placement == "replace"

    @property
    def borrows_projections(self) -> bool:
        """Fusion layers have no q, k, v, o of their own."""
        return self.shared_projections or self.replaces

    def _check_combination(self) -> None:
        """Refuse settings that contradict each other, or that would be ignored."""
        if self.inserts:
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name not in ("kind", "qformer_queries", "qformer_depth") and value != field.default:
                    why = f"`kind = {self.kind!r}` has no fusion layers, so it would be ignored."
                    raise _contradiction(field.name, value, why, field.default)
            return
        if self.replaces and self.kind != "casa":
            raise _contradiction(
                "placement",
                "replace",
                f"`kind = {self.kind!r}` has no text keys: text would lose its self-attention.",
                "parallel",
            )
        if self.replaces and self.gate != "none":
            raise _contradiction(
                "gate",
                self.gate,
                "A gate on a replacing layer would switch the block's only attention off.",
                "none",
            )
        if self.replaces and self.text_norm != "block_input_norm":
            raise _contradiction(
                "text_norm",
                self.text_norm,
                "A replacing layer is the block's attention and reads the block's norm.",
                "block_input_norm",
            )
        if self.borrows_projections and self.init == "zero_output":
            raise _contradiction(
                "init",
                self.init,
                "The output projection belongs to self-attention: zeroing it would break the language model.",
                "self_attention",
            )
        if self.gate == "tanh" and self.init == "zero_output":
            raise _contradiction(
                "init",
                self.init,
                "A tanh gate starts shut already, and behind it a zero output would have no gradient, ever.",
                "self_attention",
            )

    def layer_indices(self, num_layers: int) -> tuple[int, ...]:
        """Indices of the decoder layers that carry a fusion layer; none for insertion.

        Raises:
            ConfigError: If an index lies outside the backbone, or no layer would be fused.
        """
        if self.inserts:
            return ()
        layers = (4 if self.replaces else "all") if self.layers == "auto" else self.layers
        chosen = _choose_layers(layers, num_layers)
        if not chosen or chosen[0] < 0 or chosen[-1] >= num_layers:
            raise ConfigError(
                f"`fusion.layers = {self.layers!r}` does not fit a backbone of {num_layers} layers.",
                f"Layer indices run from 0 to {num_layers - 1}, and at least one layer must be fused.",
                'Use "all", n (every n-th layer), "first:n", "first_and_last:n" or a list of indices.',
            )
        return chosen


def _choose_layers(layers: Layers, count: int) -> tuple[int, ...]:
    """Indices a ``layers`` setting names, ascending; empty where it is not understood."""
    if layers == "all":
        return tuple(range(count))
    if isinstance(layers, int):
        return tuple(range(layers - 1, count, layers)) if layers > 0 else ()
    if isinstance(layers, str):
        which, _, number = layers.partition(":")
        if not number.isdigit() or not 0 < int(number) <= count:
            return ()
        edge = int(number)
        first, last = range(edge), range(count - edge, count)
        return {"first": tuple(first), "first_and_last": tuple(sorted({*first, *last}))}.get(which, ())
    return tuple(sorted(set(layers)))


def _contradiction(name: str, value: object, why: str, remedy: object) -> ConfigError:
    return ConfigError(
        f"`fusion.{name} = {value!r}` does not go with the rest.",
        why,
        f"Set model.fusion.{name} to {remedy!r}.",
    )


def fusion_config(fields: dict[str, Any]) -> FusionConfig:
    """A :class:`FusionConfig` from stored or written fields.

    Raises:
        ConfigError: If a field is unknown, or its value, or the combination.
    """
    known = {f.name for f in dataclasses.fields(FusionConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(
            f"Fusion has no setting {unknown[0]!r}.",
            f"Known settings: {', '.join(sorted(known))}.",
            "Remove or rename it.",
        )
    return FusionConfig(**fields)
