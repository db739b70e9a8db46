"""Many engine steps at once, in arrays: what physics needs to know of each, and nothing about requests.

A step's cost depends on a few sums over its sequences. `Steps` holds those sums, one row per step, so that thousands of
steps are priced by one vectorised call (`StepModel.price`), and a recorded run can be priced again under other
parameters without being scheduled again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from simulator.batch import Batch
from simulator.keys import KeyRule


@dataclass(frozen=True)
class Steps:
    """Float arrays with one row per step. K is the number of key rules of the model (`simulator.keys.key_rules`)."""

    decode_sequences: np.ndarray  # (S,) sequences that decode one token
    decode_keys: np.ndarray  # (S, K) keys that they attend to, summed, in one layer of each rule
    prefill_sequences: np.ndarray  # (S,) prompts of which a chunk is computed
    prefill_tok: np.ndarray  # (S,) prompt tokens computed
    prefill_cached_tok: np.ndarray  # (S,) tokens that lie in the KV cache before those chunks
    prefill_pairs: np.ndarray  # (S, K) (query, key) pairs of the chunks in one layer
    prefill_keys: np.ndarray  # (S, K) keys read from the cache by the chunks in one layer
    sampled: np.ndarray  # (S,) sequences for which a token is sampled

    def __len__(self) -> int:
        return len(self.decode_sequences)

    @property
    def new_tok(self) -> np.ndarray:
        """Tokens that pass through the linear layers, shape (S,)."""
        return self.decode_sequences + self.prefill_tok

    def take(self, index: np.ndarray) -> Steps:
        """The rows selected by `index` (integers or booleans)."""
        return Steps(*(getattr(self, field.name)[index] for field in fields(self)))

    def in_streams(self, streams: int) -> Steps:
        """The same with every sequence in so many copies, of which one token is sampled (fields: arrays or lists)."""

        def copied(by_rule):
            return [streams * of_rule for of_rule in by_rule] if isinstance(by_rule, list) else streams * by_rule

        everything = {field.name: copied(getattr(self, field.name)) for field in fields(self)}
        return Steps(**{**everything, "sampled": self.sampled})

    @staticmethod
    def concatenate(parts: Sequence[Steps]) -> Steps:
        """All rows of `parts` (at least one), in order."""
        return Steps(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Steps)))

    @staticmethod
    def from_batches(batches: Iterable[Batch], rules: Sequence[KeyRule]) -> Steps:
        """One row per batch."""
        rows = [batch_sums(batch, rules) for batch in batches]
        return Steps(*(np.array(column, dtype=float) for column in zip(*rows)))

    @staticmethod
    def from_decode_run(
        context_tok: np.ndarray, steps: int, rules: Sequence[KeyRule], growth: np.ndarray | None = None
    ) -> Steps:
        """`steps` decode steps of unchanged sequences; step j runs with contexts context_tok + j (or + j x growth)."""
        n = len(context_tok)
        keys = np.stack([rule.decode_keys(context_tok, steps, growth) for rule in rules], axis=1) if rules else None
        none, many = np.zeros(steps), np.full(steps, float(n))
        empty = np.zeros((steps, len(rules)))
        return Steps(many, empty if keys is None else keys, none, none, none, empty, empty, many)


def batch_sums(batch: Batch, rules: Sequence[KeyRule]) -> tuple:
    """The sums of one step in the order of the fields of `Steps`: floats, and lists by key rule."""
    contexts, prefill = batch.decode_context_tok, batch.prefill
    running = len(contexts)
    decode_keys = [rule.decode_keys_now(contexts) if running else 0.0 for rule in rules]
    if not prefill:
        none = [0.0] * len(rules)
        return float(running), decode_keys, 0.0, 0.0, 0.0, none, none, float(running)
    read = [[rule.keys_read(chunk) for chunk in prefill] for rule in rules]
    return (
        float(running),
        decode_keys,
        float(len(prefill)),
        float(sum(chunk.new_tok for chunk in prefill)),
        float(sum(chunk.cached_tok for chunk in prefill)),
        [sum(pairs for pairs, _ in chunks) for chunks in read],
        [sum(keys for _, keys in chunks) for chunks in read],
        float(batch.sampled_sequences),
    )
