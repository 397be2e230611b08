"""Special tokens of the chat templates, and the tokenizer of models trained from scratch: byte-level BPE.

A model built on a released backbone takes that backbone's tokenizer. Qwen's has ``qwen-1``'s special tokens
already; a text-only backbone's, such as Helium's, is given ``casa-1``'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from casa_core.errors import ConfigError

# casa-1
PAD = "<|pad|>"
END = "<|end|>"  # closes every turn; ends an answer
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
IMAGE = "<|image|>"  # stands after each image, in the image's own window: the first token that sees it
FRAME_END = "<|frame_end|>"  # ends the words about a frame
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT, IMAGE, FRAME_END)

# qwen-1
ENDOFTEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
QWEN_SPECIAL_TOKENS = (
    ENDOFTEXT,
    IM_START,
    IM_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of their ids, 151643 … 151656 in Qwen2.5-VL's vocabulary."""

# template → its special tokens, padding first; the token that ends a turn
_LAYOUTS = {"casa-1": (SPECIAL_TOKENS, END), "qwen-1": (QWEN_SPECIAL_TOKENS, IM_END)}


def build_tokenizer(
    texts: Iterable[str], vocab_size: int, template: str = "casa-1"
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in any order give the same tokenizer.

    Args:
        vocab_size: Tokens in all, special ones and the 256 bytes included.
        template: The chat template it is for.

    Raises:
        ConfigError: For an unknown template.
    """
    if template not in _LAYOUTS:
        raise ConfigError(
            f"No tokenizer can be trained for the chat template {template!r}.",
            f"Expected one of {', '.join(_LAYOUTS)}.",
            "Set model.template.",
        )
    special, end = _LAYOUTS[template]
    tokenizer = Tokenizer(models.BPE())
    # For casa-1 every run of text starts with a space, so a word is the same token wherever a frame happens
    # to cut a sentence. Qwen's text runs start with template text, so its tokenizers add none.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=template == "casa-1")
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=end,
        extra_special_tokens=[token for token in special[1:] if token != end],
        model_input_names=["input_ids"],
        clean_up_tokenization_spaces=False,
    )


def add_missing_special_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Give a text-only backbone's tokenizer the special tokens of ``casa-1``, after all of its own.

    Returns:
        How many it lacked; 0 for other templates, whose backbones bring their own.
    """
    if template != "casa-1":
        return 0
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    elif PAD in missing:
        missing.remove(PAD)  # nothing but padding is made of it
    new = [AddedToken(token, special=True, normalized=False) for token in missing]
    tokenizer.add_tokens(new, special_tokens=True)
    return len(missing)


def keep_control_tokens_out_of_texts(
    tokenizer: PreTrainedTokenizerBase, template_tokens: Iterable[str]
) -> None:
    """Make a tokenizer spell control tokens in letters where a text holds them (``split_special_tokens``).

    Control tokens are the template's, the tokenizer's special ones and every other added token but runs of
    white space. A tokenizer may hold them as ordinary words (``special: false`` in ``tokenizer.json``): they
    are flagged as special here, ids unchanged, and each is tried.

    Raises:
        ConfigError: Where a text still becomes a control token.
    """
    vocabulary = tokenizer.get_vocab()
    added = [own.content for own in tokenizer.added_tokens_decoder.values() if own.content.strip()]
    flagged = [AddedToken(token, special=True, normalized=False) for token in added]
    tokenizer.add_tokens(flagged, special_tokens=True)
    controls = sorted({*template_tokens, *tokenizer.all_special_tokens, *added})
    names = {vocabulary[token]: token for token in controls if token in vocabulary}
    names.pop(vocabulary.get(str(tokenizer.unk_token), -1), None)  # what any text may become
    for token in controls:
        text = f"a{token}b {token} c"
        spelled = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if made := sorted(names.keys() & set(spelled)):
            raise ConfigError(
                f"The tokenizer makes {', '.join(names[own] for own in made)} of a text.",
                f"A question that holds {token} could then end its turn, or claim a picture.",
                "Save the tokenizer with its control tokens as special added tokens, or take another.",
            )
