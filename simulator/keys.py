"""Which keys a query attends to: all before it, a window of the latest, its own chunk, or every one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.batch import PrefillChunk
from simulator.model import Model


@dataclass(frozen=True)
class KeyRule:
    """The rule of one kind of attention layer.

    `window_tok`: a token attends to at most this many latest tokens (itself included); None: to all before it.
    `chunked`: the window is the token's own chunk of window_tok positions. `causal`: False: every token sees all.
    """

    window_tok: int | None = None
    chunked: bool = False
    causal: bool = True

    def keys_read(self, chunk: PrefillChunk) -> tuple[float, float]:
        """((query, key) pairs, KV tokens read) of one prefill chunk in one layer."""
        new, cached = chunk.new_tok, chunk.cached_tok
        if not self.causal:
            return float(new) * (cached + new), float(cached + new)
        first, last = cached + 1, cached + new  # keys seen by the first and the last query
        window = self.window_tok
        if window is not None and self.chunked:
            pairs = _chunk_pairs(last, window) - _chunk_pairs(cached, window)
            return pairs, float(last - cached // window * window)
        if window is None or last <= window:
            return new * (first + last) / 2.0, float(last)
        growing = max(0, window - cached)  # queries that still see everything
        pairs = growing * (first + window) / 2.0 + (new - growing) * float(window)
        return pairs, float(min(last, new + window - 1))

    def keys_at(self, context_tok: int) -> int:
        """Keys that one query attends to behind `context_tok` tokens, itself included."""
        if self.window_tok is None:
            return context_tok + 1
        return context_tok % self.window_tok + 1 if self.chunked else min(context_tok + 1, self.window_tok)

    def decode_keys_now(self, context_tok: np.ndarray) -> float:
        """Keys read by the next decode step in one layer, summed over sequences: `decode_keys` of one step."""
        if self.window_tok is None:
            return float(context_tok.sum()) + len(context_tok)
        if self.chunked:
            return float((context_tok % self.window_tok).sum()) + len(context_tok)
        return float(np.minimum(context_tok, self.window_tok - 1).sum()) + len(context_tok)

    def decode_keys(self, context_tok: np.ndarray, steps: int, growth: np.ndarray | None = None) -> np.ndarray:
        """Keys read by one decode step in one layer, summed over sequences; float array of shape (steps,).

        Step j sees min(context + j + 1, window) keys per sequence. Closed form per step: sequences below the
        window grow by one each, the others stay. `growth` (sequences,): tokens that a step adds, where sequences
        attend to what others write.
        """
        if growth is not None and (growth != 1).any():
            return np.array([self.decode_keys_now(context_tok + step * growth) for step in range(steps)])
        n, j = len(context_tok), np.arange(steps)
        first = np.asarray(context_tok, dtype=np.int64) + 1
        if self.window_tok is None or int(first.max(initial=0)) + steps <= self.window_tok:
            return float(first.sum()) + n * j.astype(float)
        if self.chunked:
            return ((first[:, None] - 1 + j) % self.window_tok + 1).sum(axis=0).astype(float)
        first = np.sort(first)
        prefix = np.concatenate(([0], np.cumsum(first)))
        below = np.searchsorted(first, self.window_tok - j, side="left")
        return (prefix[below] + below * j + (n - below) * self.window_tok).astype(float)


def _chunk_pairs(tokens: int, chunk: int) -> float:
    """(query, key) pairs of the first `tokens` positions when each sees its own chunk up to itself."""
    whole, rest = divmod(tokens, chunk)
    return whole * chunk * (chunk + 1) / 2.0 + rest * (rest + 1) / 2.0


def mixer_rule(mixer) -> KeyRule | None:
    """The rule of a mixer; None for those without keys (recurrent layers)."""
    if mixer is None or mixer.kv_elements_per_token == 0:
        return None
    return KeyRule(mixer.window_tok, getattr(mixer, "chunked", False), mixer.causal)


def key_rules(model: Model) -> tuple[KeyRule, ...]:
    """The distinct rules of a model's attention layers, in order of first appearance."""
    found = (mixer_rule(group.mixer) for group in model.layers)
    return tuple(dict.fromkeys(rule for rule in found if rule is not None))
