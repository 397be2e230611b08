"""The names and labels that an expression of Prometheus's language asks for."""

from __future__ import annotations

import re

FUNCTIONS = {"sum", "max", "min", "avg", "rate", "delta", "histogram_quantile", "and"}
BLOCKS = r"\{(.*?)\}|\b(?:by|on)\s*\((.*?)\)"
"""What is selected, and what is grouped by."""


def asked(expression: str) -> tuple[set[str], set[str]]:
    """Metrics of an expression, and the labels that it selects or groups by.

    Raises:
        ValueError: It has a word that is none of these, nor a function that is known here.
    """
    text = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
    blocks = [part for pair in re.findall(BLOCKS, text) for part in pair]
    labels = {label for block in blocks for label in re.findall(r"[A-Za-z_]\w*", block)}
    words = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", re.sub(BLOCKS, " ", text)))
    names = {word for word in words if word.startswith(("ray_", "casa_", "process_"))}
    if unknown := words - names - FUNCTIONS:
        raise ValueError(f"{sorted(unknown)} in {expression}")
    return names, labels
