"""How the next token is chosen.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from casa_core.engine.requests import SamplingParams


def make_generator(params: SamplingParams) -> torch.Generator | None:
    """The request's own random stream; ``None`` when nothing is random."""
    if params.temperature <= 0:
        return None
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator


def choose_tokens(
    logits_BV: torch.Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator | None]
) -> list[int]:
    """Pick one token a row: the most likely one, or a draw from the nucleus at the row's temperature."""
    greedy = logits_BV.argmax(dim=-1).tolist()
    return [
        token if generator is None else _draw(row_V, one, generator)
        for token, row_V, one, generator in zip(greedy, logits_BV, params, generators, strict=True)
    ]


def _draw(logits_V: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    probability_V = torch.softmax(logits_V.float().cpu() / params.temperature, dim=-1)
    if params.top_p < 1.0:
        ordered, order = probability_V.sort(descending=True)
        # A token stays when the mass *before* it is below top_p, so the most likely one always does.
        outside = ordered.cumsum(0) - ordered >= params.top_p
        probability_V = torch.zeros_like(probability_V).scatter(0, order, ordered.masked_fill(outside, 0.0))
    return int(torch.multinomial(probability_V, 1, generator=generator))
