"""Attention masking: what a model answers if tokens may not attend to themselves or to a random other token
(paper, Table 8).

Inside the fusion layers of eq. 3 every text token loses one token that it may not attend to:

* ``self``: itself;
* ``random_text``: one random past text token of its window;
* ``random_token``: one random past token of its window, image or text.

The paper does not say when the random choice is made. Here it is made once per token: the same for all layers
and heads, a function of the seed, the token's place among its window's text, and how many there are to choose
from. It does not depend on how the text was cut into forwards, so decoding with a cache chooses as one long
forward does; nor on the document, so that the n-th text token of every window with as many image tokens loses
the same place. Where nothing is left to attend to, the update is zero.

Shape suffixes: T query (text) tokens, K keys, H/G query/key-value heads, D head size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from casa_core.analysis.probe import WindowPart, probing, watching_refusal, window_parts
from casa_core.errors import ConfigError
from casa_core.fusion.attention import segment_attention
from casa_core.fusion.layers import AttentionCall, AttentionProbe
from casa_core.fusion.windows import Windows
from casa_core.model import CasaForConditionalGeneration

Masking = Literal["self", "random_text", "random_token"]
MASKINGS: tuple[Masking, ...] = get_args(Masking)


@contextmanager
def masked_attention(model: CasaForConditionalGeneration, what: Masking, seed: int = 0) -> Iterator[None]:
    """Mask one token from each text token's attention in every fusion layer, for as long as this lasts.

    Whole forwards, cached decoding and the engine are masked alike::

        with masked_attention(engine.model, "self"):
            engine.generate(requests)

    Args:
        model: A model of kind ``casa``.
        what: ``self``, ``random_text`` or ``random_token``; see above.
        seed: Seed of the random choice.

    Raises:
        ConfigError: If the model's fusion layers have no text keys, or ``what`` is unknown.
    """
    if what not in MASKINGS:
        raise ConfigError(
            f"`what` = {what!r} is not a masking.",
            f"It is one of {', '.join(map(repr, MASKINGS))}.",
            "Name one of them.",
        )
    refusal = masking_refusal(model)
    if refusal is not None:
        raise refusal

    def probe(windows: Windows) -> AttentionProbe:
        parts = window_parts(windows, attends_text=True, device=model.device)
        allowed = [_allowed(part, what, seed) for part in parts]
        return lambda call: _masked(call, parts, allowed)

    with probing(model, probe):
        yield


def masking_refusal(model: CasaForConditionalGeneration) -> ConfigError | None:
    """Why nothing can be masked in a model, if so."""
    kind = model.config.fusion_settings.kind
    if kind == "cross_attention":
        return ConfigError(
            f"Nothing can be masked in a model of fusion.kind = {kind!r}.",
            "Its text tokens attend to image tokens alone: not to themselves, nor to other text.",
            "Mask a model of kind 'casa' (eq. 3).",
        )
    return watching_refusal(model)


def masked_position(what: Masking, seed: int, images: int, number: int) -> int | None:
    """The position in its window that a text token may not attend to.

    Args:
        what, seed: As in :func:`masked_attention`.
        images: Image tokens of the window; they have its positions 0, 1, …
        number: The text token's among its window's text, from 0; its own position is ``images + number``.

    Returns:
        ``None`` where there is no past token to lose.
    """
    if what == "self":
        return images + number
    first, past = (images, number) if what == "random_text" else (0, images + number)
    if past == 0:
        return None
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return first + int.from_bytes(digest, "big") % past


def _allowed(part: WindowPart, what: Masking, seed: int) -> torch.Tensor:
    """(T, K), False at what each token may not attend to; keys are in the order of their positions."""
    allowed_TK = torch.ones(len(part.text_T), len(part.key_K), dtype=torch.bool)
    for query in range(len(part.text_T)):
        position = masked_position(what, seed, part.images, part.seen + query)
        if position is not None:
            allowed_TK[query, position] = False
    return allowed_TK.to(part.text_T.device)


def _masked(call: AttentionCall, parts: list[WindowPart], allowed: list[torch.Tensor]) -> torch.Tensor:
    """The reference attention with a mask (T, K) of its own for each window, one after the other."""
    out_THD = torch.zeros_like(call.query_THD, dtype=call.value_KGD.dtype)
    for part, allowed_TK in zip(parts, allowed, strict=True):
        out_THD[part.text_T] = segment_attention(
            call.query_THD[part.text_T],
            call.key_KGD[part.key_K],
            call.value_KGD[part.key_K],
            part.segments,
            causal=call.causal,
            backend="reference",
            allowed_TN=allowed_TK,
        )
    return out_THD
