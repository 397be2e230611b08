"""Qwen2.5-VL's tokenizer, rebuilt from the vocabulary that the package ``dashscope`` ships.

The package has the BPE's tokens in the order of their making, as base64. transformers wants the merges: a
token's merge is the pair it falls into when only earlier tokens may be used.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2 import Qwen2Tokenizer

from casa_core.processing.tokenizer import QWEN_SPECIAL_TOKENS


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer, or a skipped test where the package is missing."""
    package = find_spec("dashscope")  # not imported: its own imports are many and not needed
    if package is None or package.origin is None:
        pytest.skip("needs Qwen's vocabulary: pip install --no-deps dashscope")
    return _convert(Path(package.origin).parent / "resources" / "qwen.tiktoken")


@lru_cache(maxsize=1)
def _convert(path: Path) -> PreTrainedTokenizerBase:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letters = _byte_letters()
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        (spell[left], spell[right])
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
        for left, right in [_halves(token, ranks, rank)]
    ]
    vocab = {spell[token]: rank for token, rank in ranks.items()}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in QWEN_SPECIAL_TOKENS])
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def _halves(token: bytes, ranks: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    """The two tokens that this one was merged from."""
    pieces = [token[place : place + 1] for place in range(len(token))]
    while len(pieces) > 2:
        pairs = [(ranks.get(a + b, limit), place) for place, (a, b) in enumerate(pairwise(pieces))]
        rank, place = min(pairs)
        assert rank < limit, f"{token!r} cannot be reached by merges"
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces[0], pieces[1]


def _byte_letters() -> dict[int, str]:
    """Byte-level BPE's printable stand-in for each byte: itself, or the next letter from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte if byte in printable else 0x100 + hidden.index(byte)) for byte in range(256)}
