"""Text as a simulator sees it: which tokens, not what they say."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

Part = tuple[Hashable, int]


@dataclass(frozen=True, slots=True)
class Text:
    """A tuple of parts (part id, tokens). A part id names one stream of tokens and (id, n) is its first n tokens.

    Equal prefixes of parts are equal prefixes of tokens; that is all the prefix cache needs to know. `a + b` is the
    text of `a` followed by the text of `b`.
    """

    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, part_id: Hashable, tokens: int) -> Text:
        """A text of one part; without tokens it is the empty text."""
        if tokens < 0:
            raise ValueError(f"text {part_id!r}: {tokens} tokens")
        return cls(((part_id, int(tokens)),)) if tokens else cls()

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return sum(tokens for _, tokens in self.parts)

    def __add__(self, other: Text) -> Text:
        return Text(self.parts + other.parts) if isinstance(other, Text) else NotImplemented

    def first(self, tokens: int) -> Text:
        """Its first `tokens` tokens: what is kept when a text is rewound. All of it if it has no more."""
        kept, left = [], tokens
        for part_id, length in self.parts:
            if left <= 0:
                break
            kept.append((part_id, min(length, left)))
            left -= length
        return Text(tuple(kept))
