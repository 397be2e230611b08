"""The tokenizer of models trained from scratch: byte-level BPE with this project's special tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
END = "<|end|>"  # closes every turn; ends an answer
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
IMAGE = "<|image|>"  # stands after each image, in the image's own window: the first token that sees it
FRAME_END = "<|frame_end|>"  # says: nothing more until the next frame
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT, IMAGE, FRAME_END)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in any order give the same tokenizer.

    Args:
        texts: The training corpus's text.
        vocab_size: Tokens in all, special ones and the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    # Every run of text starts with a space, so a word is the same token wherever a frame happens to cut a
    # sentence.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT, IMAGE, FRAME_END],
        model_input_names=["input_ids"],
        clean_up_tokenization_spaces=False,
    )
