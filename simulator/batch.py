"""What one engine step has to do: prefill chunks and decoding sequences."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class PrefillChunk:
    """`new_tok` prompt tokens computed in this step behind `cached_tok` tokens already in the KV cache.

    `completes` is true when the chunk ends its prompt: then the step samples the first output token. `logits_tok`:
    positions for which logits are computed, where they are more than that one (full passes of a diffusion model).
    """

    new_tok: int
    cached_tok: int = 0
    completes: bool = True
    logits_tok: int | None = None


@dataclass(frozen=True)
class Batch:
    """One step: any number of prefill chunks beside any number of decoding sequences.

    `decode_context_tok` is an int array of shape (sequences,): KV tokens that each running sequence holds
    BEFORE this step. The step writes one more token per sequence and attends to context + 1 tokens.
    """

    prefill: tuple[PrefillChunk, ...] = ()
    decode_context_tok: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def new_tok(self) -> int:
        """Tokens that pass through the linear layers in this step."""
        return sum(chunk.new_tok for chunk in self.prefill) + len(self.decode_context_tok)

    def behind(self, prefix_tok: int) -> Batch:
        """The same batch with `prefix_tok` further tokens in the KV cache before every sequence."""
        prefill = tuple(replace(chunk, cached_tok=chunk.cached_tok + prefix_tok) for chunk in self.prefill)
        return Batch(prefill, self.decode_context_tok + prefix_tok)

    @property
    def sampled_sequences(self) -> int:
        """Sequences for which logits are computed and a token is sampled."""
        return sum(chunk.completes for chunk in self.prefill) + len(self.decode_context_tok)

    @property
    def further_logits_tok(self) -> int:
        """Positions with logits besides the one of each sampled sequence."""
        return sum(c.logits_tok - c.completes for c in self.prefill if c.logits_tok is not None)
