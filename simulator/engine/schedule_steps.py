"""From a schedule in steps to rows that physics can price: attended keys of all sequences, summed in arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.engine.token_clock import Schedule
from simulator.keys import KeyRule
from simulator.steps import Steps

MAX_KEY_GROWTH = 0.1  # within one row of decode steps the attended keys grow by at most this share


def steps_of(
    plan: Schedule, rules: Sequence[KeyRule], max_key_growth: float = MAX_KEY_GROWTH
) -> tuple[Steps, np.ndarray, np.ndarray]:
    """(steps, repeat (S',), row (S + 1,)): one row per stretch, long stretches cut so that keys vary little in a row.

    A row holds the mean of its `repeat` steps. row[e] is the row at which edge e of the schedule lies.
    """
    starts = np.concatenate(([0], np.cumsum(plan.repeat)))
    spells = (plan.spell_start, plan.spell_end, plan.spell_context_tok)
    stretch, repeat = _cut(plan, starts, spells, max_key_growth if rules else np.inf)
    edges = np.concatenate(([0], np.cumsum(repeat)))
    row = np.searchsorted(edges, starts)
    decode = plan.decode_sequences[stretch].astype(float)
    keys = [np.diff(_keys_before(rule, *spells, edges)) / repeat for rule in rules]
    chunk_row = row[plan.chunk_row]

    def per_row(values: np.ndarray) -> np.ndarray:
        return np.bincount(chunk_row, weights=values, minlength=len(repeat))

    read = [prefill_keys(rule, plan.chunk_new_tok, plan.chunk_cached_tok) for rule in rules]
    steps = Steps(
        decode_sequences=decode,
        decode_keys=_columns(keys, len(repeat)),
        prefill_sequences=per_row(np.ones(len(chunk_row))),
        prefill_tok=per_row(plan.chunk_new_tok),
        prefill_cached_tok=per_row(plan.chunk_cached_tok),
        prefill_pairs=_columns([per_row(pairs) for pairs, _ in read], len(repeat)),
        prefill_keys=_columns([per_row(keys) for _, keys in read], len(repeat)),
        sampled=decode + per_row(plan.chunk_completes),
    )
    return steps, repeat, row


def _columns(columns: list[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.empty((rows, 0))


def _cut(plan: Schedule, starts: np.ndarray, spells: tuple, growth: float) -> tuple[np.ndarray, np.ndarray]:
    """(stretch, repeat) of each row: stretches in which all contexts together grow by more than `growth`, in pieces."""
    first = np.diff(_keys_before(KeyRule(), *spells, np.stack((starts[:-1], starts[:-1] + 1)).T.ravel()))[::2]
    ratio = 1.0 + plan.decode_sequences * (plan.repeat - 1) / np.maximum(first, 1)
    pieces = np.ones(len(ratio), dtype=np.int64)
    if np.isfinite(growth):
        pieces = np.minimum(np.ceil(np.log(ratio) / np.log1p(growth)).clip(1).astype(np.int64), plan.repeat)
    stretch = np.repeat(np.arange(len(pieces)), pieces)
    piece = np.arange(1, len(stretch) + 1) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 1 .. pieces
    share = piece / pieces[stretch]
    growth_of = np.maximum(ratio[stretch] - 1.0, 1e-300)
    grown = np.where(ratio[stretch] > 1.0, (ratio[stretch] ** share - 1.0) / growth_of, share)
    ends = np.maximum(np.rint(grown * plan.repeat[stretch]).astype(np.int64), piece)  # keys grow alike in every piece
    ends = np.where(piece == pieces[stretch], plan.repeat[stretch], ends)
    repeat = np.diff(np.concatenate(([0], starts[:-1][stretch] + ends)))
    return stretch[repeat > 0], repeat[repeat > 0]


def _keys_before(
    rule: KeyRule, start: np.ndarray, end: np.ndarray, context_tok: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """Keys read by decoding in one layer, summed over all steps before each of `steps`; int array.

    The keys of one step are piecewise linear in the step: events (step, jump, change of slope) describe them, and
    sums up to any step follow from prefix sums over the events. Integers may wrap on the way, differences are exact.
    """
    at, jump, slope = _key_events(rule, start, end - start, context_tok + 1)
    order = np.argsort(at, kind="stable")
    at, jump, slope = at[order], jump[order], slope[order]
    sums = [np.concatenate(([0], np.cumsum(x))) for x in (jump, jump * at, slope, slope * at, slope * at * at)]
    a, b, s, t, u = (x[np.searchsorted(at, steps)] for x in sums)
    return a * steps - b + (steps * (steps - 1) * s - (2 * steps - 1) * t + u) // 2


def _key_events(rule: KeyRule, start: np.ndarray, n: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, ...]:
    """(step, jump, change of slope) of the keys of spells of `n` steps whose first one sees `first` tokens."""
    window, none, one = rule.window_tok, np.zeros_like(n), np.ones_like(n)
    if window is None:
        return _join((start, first, one), (start + n, -(first + n), -one))
    if not rule.chunked:
        growing = np.clip(window - first, 0, n)
        seen, one = np.minimum(first, window), (growing > 0).astype(np.int64)
        return _join((start, seen, one), (start + growing, none, -one), (start + n, -(seen + growing), none))
    seen = (first - 1) % window + 1
    drops = (seen + n - 2) // window  # times that the sequence enters a new chunk
    number = np.arange(drops.sum()) - np.repeat(np.cumsum(drops) - drops, drops)
    at = np.repeat(start + window - seen + 1, drops) + number * window
    return _join(
        (start, seen, one),
        (at, np.full_like(at, -window), np.zeros_like(at)),
        (start + n, -(seen + n - drops * window), -one),
    )


def _join(*events: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*events))


def prefill_keys(rule: KeyRule, new_tok: np.ndarray, cached_tok: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`KeyRule.keys_read` for many chunks: ((query, key) pairs, KV tokens read), float arrays of shape (C,)."""
    new, cached, window = new_tok.astype(float), cached_tok.astype(float), rule.window_tok
    first, last = cached + 1.0, cached + new
    if not rule.causal:
        return new * last, last
    if window is None:
        return new * (first + last) / 2.0, last
    if rule.chunked:
        return _chunk_pairs(last, window) - _chunk_pairs(cached, window), last - cached // window * window
    growing = np.clip(window - cached, 0.0, new)
    pairs = growing * (first + first + growing - 1.0) / 2.0 + (new - growing) * window
    return pairs, np.minimum(last, new + window - 1.0)


def _chunk_pairs(tokens: np.ndarray, chunk: int) -> np.ndarray:
    whole, rest = tokens // chunk, tokens % chunk
    return whole * chunk * (chunk + 1) / 2.0 + rest * (rest + 1.0) / 2.0
