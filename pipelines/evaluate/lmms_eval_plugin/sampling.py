"""lmms-eval's ``generation_kwargs`` → how tokens are chosen.

The rule: a setting that the engine has is obeyed; one that would change nothing is accepted (``None``, a
neutral value, or a setting of how other models read pictures or keep their caches); every other is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from casa_core.engine.requests import SamplingParams
from casa_core.errors import ConfigError

DEFAULT_TOKENS = 128
"""Longest answer where a task does not bound it: that of CASA's own evaluation of pictures."""
STOPS = ("until", "stop", "stop_sequences")
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "seed": int,
}
NEUTRAL = {"num_beams": 1, "n": 1, "num_return_sequences": 1, "repetition_penalty": 1, "length_penalty": 1}
"""Settings that the engine does not have in this form, and the value at which they change nothing."""
OF_OTHERS = ("image_aspect_ratio", "use_cache")


def sampling_params(asked: Mapping[str, Any], context: int) -> SamplingParams:
    """The engine's settings for a task's.

    Tokens are drawn where ``do_sample`` is not false and the temperature is above 0. No answer is longer than
    half of the context: tasks ask for up to 49,152 tokens of any model.

    Args:
        asked: The task's ``generation_kwargs``, overridden by ``--gen_kwargs``.
        context: Text tokens of a prompt and its answer together.

    Raises:
        ConfigError: For a setting that cannot be obeyed, or a value that is none.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    found = {name: _number(name, given.pop(name)) for name in NUMBERS if name in given}
    stops = [stop for name in STOPS for stop in _texts(name, given.pop(name, ()))]
    draws = given.pop("do_sample", None)
    if draws is False:
        found["temperature"] = 0.0
    elif draws is True:
        found.setdefault("temperature", 1.0)
    elif draws is not None:
        raise ConfigError(f"`do_sample` is {draws!r}.", "It is a choice.", "Set it to true or false.")
    for name, value in given.items():
        if name not in OF_OTHERS and not (name in NEUTRAL and value == NEUTRAL[name]):
            raise ConfigError(
                f"The generation setting `{name}` is {value!r}, and cannot be obeyed.",
                f"Obeyed are {', '.join((*NUMBERS, 'do_sample', *STOPS))}.",
                f"Take `{name}` out of the task's settings, or set it to a value that changes nothing.",
            )
    found["max_new_tokens"] = min(found.get("max_new_tokens", DEFAULT_TOKENS), max(context // 2, 1))
    return SamplingParams(**found, stop=tuple(dict.fromkeys(stops)))


def _number(name: str, value: Any) -> Any:
    try:
        return NUMBERS[name](value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`{name}` is {value!r}.", "It is a number.", f"Give `{name}` a number.") from error


def _texts(name: str, value: Any) -> list[str]:
    """The strings that end an answer; empty ones end none."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str | None) for one in texts):
        raise ConfigError(f"`{name}` is {value!r}.", "It is a text, or a list of texts.", "Correct it.")
    return [text for text in texts if text]
