"""How much text a stream keeps."""

from __future__ import annotations

from dataclasses import dataclass

from casa_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBounds:
    """Bounds of the text KV: the first tokens (attention sinks) and the most recent ones are kept.

    Positions are those inside the cache: when tokens are dropped, the keys after them are shifted back by as
    many positions, so a stream of any length never runs out of positions (Xiao et al., 2023: "Efficient
    Streaming Language Models with Attention Sinks").

    Attributes:
        sinks: Tokens at the start that are never dropped.
        recent: Least number of most recent tokens kept.
        slack: Tokens beyond both that accumulate before they are dropped together, so a key is shifted about
            recent / slack times in all, not once per token.

    Raises:
        ConfigError: If a number is too small.
    """

    sinks: int = 64
    recent: int = 4096
    slack: int = 512

    def __post_init__(self) -> None:
        for name, least in (("sinks", 0), ("recent", 1), ("slack", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"Text bounds: {name} = {getattr(self, name)} is too small.",
                    f"`{name}` counts text tokens.",
                    f"Set it to {least} or more.",
                )

    @classmethod
    def within(cls, context: int) -> TextBounds:
        """The default bounds, smaller where a context of so many tokens is."""
        usual = cls()
        sinks, slack = min(usual.sinks, context // 8), max(min(usual.slack, context // 8), 1)
        return cls(sinks=sinks, recent=max(min(usual.recent, context - sinks - slack), 1), slack=slack)

    @property
    def limit(self) -> int:
        """Largest number of text tokens per sequence."""
        return self.sinks + self.recent + self.slack
