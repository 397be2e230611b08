"""``generate()``: the cache that transformers' decoding loops pass around, and the few hooks they need.

The loops are transformers' own. What they call ``cache`` (``past_key_values`` before 5.24) is here a
:class:`CasaCache`: cached sequences with a length for each row, so that padding is neither stored nor
attended to.

Shape suffixes: B rows, A those with new tokens, L columns of a padded row, K kept columns, V vocabulary, I
images, P patches, E values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode
from transformers.utils.generic import ModelOutput

from casa_core.compiling import on_host
from casa_core.decoding.kv_batch import KVBatch
from casa_core.errors import ConfigError, DataError
from casa_core.hf_batch import PaddedBatch, check_lengths, image_places, kept_columns, read_padded
from casa_core.inputs import IMAGE_INPUTS, CasaOutput
from casa_core.pretrained import CACHE_ARGUMENT, refuse_arguments

if TYPE_CHECKING:
    from casa_core.model import CasaForConditionalGeneration


_FOR_LOOPS = ("tokenizer", "assistant_tokenizer")
"""Arguments of ``generate()`` that transformers' loops pass on to every forward."""


class CasaCache:
    """The cache of a batch of rows between forwards: text KV, the windows' KV, positions.

    Attributes:
        sequences: The rows.
        columns: Columns of the padded batch read so far, padding counted.
    """

    # transformers asks every cache; it would compile forwards, or undo tokens, if these were true.
    is_compileable = False
    is_croppable = False
    # One flag per layer; transformers checks whether all are set. Attention keeps every key.
    is_linear: tuple[bool, ...] = (False,)

    def __init__(self, model: CasaForConditionalGeneration, rows: int) -> None:
        self.sequences = KVBatch(model, rows)
        self.columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far: from this transformers decides which tokens are new."""
        return self.columns

    def check(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Refuse a batch that does not continue these rows.

        Raises:
            DataError: If there are more or fewer rows, or their padding has moved.
        """
        rows, new = input_ids.shape
        if rows != self.sequences.size:
            raise DataError(
                f"`input_ids` has {rows} rows, the cache {self.sequences.size}.",
                "A cache is continued row by row.",
                "Pass the rows it was made with, or start without a cache.",
            )
        if attention_mask is None or attention_mask.shape[1] != self.columns + new:
            return
        shown = attention_mask[:, : self.columns].sum(dim=1).tolist()
        if shown != self.sequences.lengths:
            raise DataError(
                f"`attention_mask` shows {shown} tokens in the columns that the cache has read.",
                f"It holds {self.sequences.lengths} tokens of them.",
                "Rows padded anew have other columns: continue one conversation at a time.",
            )

    def extend(self, batch: PaddedBatch, columns_K: Sequence[int]) -> torch.Tensor:
        """Read a batch's columns.

        Args:
            batch: New columns only.
            columns_K: The columns whose logits are wanted. Each ends a forward of its own, so ask for the
                last alone unless you need more.

        Returns:
            (B, K, V); in padding, the logits after the row's last token before it (0 without one).

        Raises:
            DataError: If a row still has no token after this.
        """
        check_lengths([old + new for old, new in zip(self.sequences.lengths, batch.lengths, strict=True)])
        width = batch.input_ids.shape[1]
        after: dict[int, torch.Tensor] = {}
        latest_BV: torch.Tensor | None = None
        start = 0
        for stop in sorted({column + 1 for column in columns_K} | {width}):
            rows = batch.chunks(start, stop)
            active = [number for number, row in enumerate(rows) if row is not None]
            if active:
                read = torch.tensor(active, device=self.sequences.model.device)
                logits_AV = self.sequences.extend(rows)
                if latest_BV is None:
                    latest_BV = logits_AV.new_zeros(len(rows), logits_AV.shape[-1])
                latest_BV = latest_BV.index_copy(0, read, logits_AV)
            if latest_BV is not None:
                after[stop - 1] = latest_BV
            start = stop
        self.columns += width
        if latest_BV is None:
            raise DataError(
                "The batch has no new token.",
                "Its attention_mask is 0 everywhere.",
                "Pass at least one row with a token.",
            )
        nothing_BV = torch.zeros_like(latest_BV)
        return torch.stack([after.get(column, nothing_BV) for column in columns_K], dim=1)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row n becomes what row ``beam_idx[n]`` was: beam search keeps some beams and drops others."""
        self.sequences.reorder(beam_idx.tolist())


@on_host
def forward_with_cache(
    model: CasaForConditionalGeneration,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    images: Mapping[str, torch.Tensor | None],
    cache: CasaCache | None,
    logits_to_keep: int | torch.Tensor,
) -> CasaOutput:
    """A padded batch with a cache: each row grows by its real tokens.

    Args:
        input_ids, attention_mask, images: As :func:`casa_core.hf_batch.read_padded` takes them.
        cache: The rows' cache; ``None`` makes a new one.
        logits_to_keep: The columns whose logits are wanted.

    Returns:
        (B, K, V) logits, and the cache.

    Raises:
        DataError: If the inputs do not fit each other, or the cache.
    """
    if cache is not None and not isinstance(cache, CasaCache):
        raise DataError(
            f"The cache is a {type(cache).__name__}.",
            "The model keeps the current window's images beside the text, which only its own cache holds.",
            "Start without one; what a forward with use_cache=True returns can be passed on.",
        )
    batch = read_padded(model.config, input_ids, attention_mask, images, cache.columns if cache else 0)
    if cache is None:
        cache = CasaCache(model, len(batch.input_ids))
    cache.check(batch.input_ids, attention_mask)
    columns_K = kept_columns(logits_to_keep, batch.input_ids.shape[1])
    return CasaOutput(logits=cache.extend(batch, columns_K.tolist()), cache=cache)


class CasaGenerationMixin(GenerationMixin):
    """transformers' ``generate()`` on a :class:`CasaCache`: greedy, sampling and beam search."""

    _is_stateful = True  # tokens cannot be removed again, so no assisted decoding

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No cache of transformers': the first forward makes ours."""
        return False

    def _validate_generation_mode(
        self, generation_mode: GenerationMode, generation_config: Any, generation_mode_kwargs: dict[str, Any]
    ) -> None:
        """Refuse what our cache cannot do."""
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise ConfigError(
                "Assisted generation (assistant_model, prompt_lookup_num_tokens) is not available.",
                "Tokens it rejects would have to be taken out of the window's cache again.",
                "Generate without it.",
            )
        if getattr(generation_config, "token_healing", False):
            raise ConfigError(
                "`token_healing = True` is not available.",
                "It rewrites the prompt's tokens, and images have positions among them.",
                "End the prompt with a user's turn, as CasaProcessor does; nothing needs healing there.",
            )
        for name, allowed in (("cache_implementation", (None, "dynamic")), ("prefill_chunk_size", (None,))):
            value = getattr(generation_config, name, None)
            if value not in allowed:
                raise ConfigError(
                    f"`{name} = {value!r}` is not available.",
                    "The model keeps a cache of its own, for text and for the current window's images.",
                    f"Leave {name} out.",
                )
        theirs: Any = super()
        theirs._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Refuse by its own reason what the model's forward would refuse, or could not continue from."""
        if model_kwargs.get("inputs_embeds") is not None:
            raise ConfigError(
                "`inputs_embeds` is not available in generate().",
                "Generated tokens continue a prompt of token ids, which the model's cache reads in pieces.",
                "Pass input_ids; a plain forward takes inputs_embeds.",
            )
        refuse_arguments(model_kwargs)
        theirs: Any = super()
        theirs._validate_model_kwargs(model_kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The cache goes on to the next step by the name that this version of transformers looks for."""
        if (cache := outputs.get("cache")) is not None:
            model_kwargs[CACHE_ARGUMENT] = cache
        theirs: Any = super()
        return theirs._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The forward's inputs: with a cache new tokens only, and images only where they are new."""
        theirs: Any = super()
        inputs: dict[str, Any] = theirs.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        images = {name: kwargs.get(name) for name in IMAGE_INPUTS}
        inputs = {name: value for name, value in inputs.items() if name not in (*images, *_FOR_LOOPS)}
        columns = input_ids.shape[1]
        known = columns - inputs["input_ids"].shape[1]
        if known and not is_first_iteration:  # a generated token: every image came before it
            return inputs
        return inputs | later_images(images, known, columns)

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Every row ``expand_size`` times, each copy with its images."""
        images = {name: model_kwargs.pop(name) for name in IMAGE_INPUTS if name in model_kwargs}
        theirs: Any = super()
        input_ids, model_kwargs = theirs._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, model_kwargs | repeated_images(images, expand_size)


def later_images(images: dict[str, Any], known: int, columns: int) -> dict[str, Any]:
    """The images before tokens that a cache has not read.

    Args:
        images: The values of :data:`IMAGE_INPUTS`, their counts from the first column on.
        known: Columns that the cache has read.
        columns: Columns of the rows by now; no image stands before those that were generated.
    """
    if any(value is None for value in images.values()):
        return {name: value for name, value in images.items() if value is not None}
    counts_BL = images["image_counts"]
    counts_BL = pad(counts_BL, (0, max(0, columns - counts_BL.shape[1])))
    if known == 0:
        return images | {"image_counts": counts_BL}
    _, column_I = image_places(counts_BL.cpu().numpy())
    new = (column_I >= known).nonzero()[0].tolist()
    return _chosen_images(images, new) | {"image_counts": counts_BL[:, known:]} if new else {}


def repeated_images(images: dict[str, Any], times: int) -> dict[str, Any]:
    """The images of a batch whose rows are each repeated ``times`` in place."""
    if times == 1 or any(images.get(name) is None for name in IMAGE_INPUTS):
        return images
    counts_BL = images["image_counts"].repeat_interleave(times, dim=0)
    order: list[int] = []
    first = 0
    for count in images["image_counts"].sum(dim=1).tolist():
        order += list(range(first, first + count)) * times
        first += count
    chosen = _chosen_images(images, order) if order else images
    return chosen | {"image_counts": counts_BL}


def _chosen_images(images: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Patches and grids of some images of a batch."""
    grids = images["image_grid_thw"]
    each_PE = images["pixel_values"].split(grids.prod(dim=1).tolist())
    index = torch.tensor(order, dtype=torch.long, device=grids.device)
    return {
        "pixel_values": torch.cat([each_PE[n] for n in order]),
        "image_grid_thw": grids.index_select(0, index),
    }
