"""Step costs as a table: what a simulation with traffic asks for millions of times, and sums over runs of steps.

The cost of a decode step depends on the number of sequences n and on the keys K they attend to (one number per key rule
of the model). For each n it is tabulated over a fixed grid of K that grows by `RATIO` from cell to cell, and linear in
between (bilinear with two rules). While a batch does not change, K grows by a fixed amount per step. So the sum over
any number of steps has a closed form, cell by cell, and it does not matter in which pieces it is taken. How far the
table is from the physics behind it: `tests/test_step_table.py`, docs/step-table.txt.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from simulator.batch import PrefillChunk
from simulator.keys import KeyRule
from simulator.step import StepModel
from simulator.steps import Steps

RATIO = 1.03  # of successive grid points
_BLOCK = 8  # with two rules, cells are computed in blocks of so many by so many
_MOST_KEYS = 1 << 40
_KEPT_CHUNKS = 50_000


def _grid() -> list[int]:
    """0, 1, 2, … then growing by RATIO: whole numbers at which a cell begins."""
    points, value = [0], 1
    while value < _MOST_KEYS:
        points.append(value)
        value = max(value + 1, math.ceil(value * RATIO))
    return points


GRID = _grid()


class StepTable:
    """Costs of the steps of one deployment; `longest_tok`: the most tokens that one sequence can have.

    `physics` is a `simulator.step.StepModel`, or offers the same `price` and `rules`.
    `stretch(sequences, keys, slopes, steps, until_s, extra)` gives (steps, seconds, joules, last step's seconds) of
    at most `steps` decode steps: no more than it takes to last `until_s` and `extra` further ones. `keys`, one sum per
    rule, grow by `slopes` from step to step.
    """

    def __init__(self, physics: StepModel, longest_tok: int) -> None:
        self.physics, self.rules = physics, physics.rules
        self.idle_power_w = float(getattr(physics, "idle_power_w", 0.0))
        decode = (_NoRule, _OneRule, _TwoRules)[len(self.rules)] if len(self.rules) < 3 else _ManyRules
        self.stretch = decode(physics, longest_tok).stretch
        self._still = [0] * len(self.rules)
        # Prefill beside decoding is put together from parts where the physics is a sum of parts.
        self._in_parts = getattr(physics, "in_parts", False)
        self._attention = [_DecodeAttention(physics, rule, longest_tok) for rule in range(len(self.rules))]
        self._prefill: dict[tuple, tuple[float, ...]] = {}  # attention of chunks

    def decode(self, sequences: int, keys: Sequence[int]) -> tuple[float, float]:
        """(seconds, joules) of one step of `sequences` decoding sequences that attend to `keys`, one sum per rule."""
        return self.stretch(sequences, keys, self._still, 1)[1:3]

    def mixed(self, sequences: int, keys: Sequence[int], chunks: Sequence[tuple]) -> tuple[int, int, float, float]:
        """(new prompt tokens, prompts completed, seconds, joules) of a step that also computes chunks of prompts.

        chunks: (whose, new tokens, tokens cached before, whether it completes its prompt) each.
        """
        if len(chunks) == 1:
            _, new, cached, completes = chunks[0]
            key = (new, cached)
        else:
            new, completes = sum(chunk[1] for chunk in chunks), sum(chunk[3] for chunk in chunks)
            key = tuple(sorted(chunk[1:3] for chunk in chunks))
        if not self._in_parts:
            return new, completes, *self._exact(self._sums(sequences, keys, chunks))
        parts = self._prefill.get(key)
        if parts is None:
            if len(self._prefill) >= _KEPT_CHUNKS:
                self._prefill.clear()
            parts = self._prefill[key] = self.physics.prefill_attention(self._sums(sequences, keys, chunks))
        if sequences:
            for table, k in zip(self._attention, keys):
                parts = table.added(parts, sequences, k)
        return new, completes, *self.physics.step_of_parts(sequences, new, completes, parts)

    def _exact(self, sums: Steps) -> tuple[float, float]:
        """(seconds, joules) of one step from the physics itself."""
        if hasattr(self.physics, "step_of_sums"):
            cost = self.physics.step_of_sums(sums)
            return cost.seconds, cost.joules
        cost = self.physics.price(Steps(*(np.array([getattr(sums, field.name)]) for field in fields(Steps))))
        return float(cost.seconds[0]), float(cost.joules[0])

    def _sums(self, sequences: int, keys: Sequence[int], chunks: Sequence[tuple]) -> Steps:
        read = [_chunk_keys(rule, chunks) for rule in self.rules]
        return Steps(
            decode_sequences=float(sequences),
            decode_keys=[float(k) for k in keys],
            prefill_sequences=float(len(chunks)),
            prefill_tok=float(sum(new for _, new, _, _ in chunks)),
            prefill_cached_tok=float(sum(cached for _, _, cached, _ in chunks)),
            prefill_pairs=[pairs for pairs, _ in read],
            prefill_keys=[keys for _, keys in read],
            sampled=float(sequences + sum(completes for _, _, _, completes in chunks)),
        )


def _chunk_keys(rule: KeyRule, chunks: Sequence[tuple]) -> tuple[float, float]:
    """((query, key) pairs, KV tokens read) of all chunks in one layer."""
    if rule.window_tok is None and rule.causal:
        pairs = sum(new * (2 * cached + new + 1) for _, new, cached, _ in chunks) / 2.0
        return pairs, float(sum(new + cached for _, new, cached, _ in chunks))
    read = [rule.keys_read(PrefillChunk(new, cached)) for _, new, cached, _ in chunks]
    return sum(pairs for pairs, _ in read), sum(keys for _, keys in read)


def _decode_steps(sequences: float, keys: np.ndarray) -> Steps:
    """Decode steps of `sequences` sequences; keys (S, K)."""
    none, many, empty = np.zeros(len(keys)), np.full(len(keys), float(sequences)), np.zeros_like(keys)
    return Steps(many, keys, none, none, none, empty, empty, many)


def _cells(sequences: int, longest_tok: int) -> tuple[int, int]:
    """(first, last) grid points around the keys that `sequences` sequences can have."""
    return bisect_right(GRID, sequences) - 1, bisect_right(GRID, sequences * longest_tok) + 1


class _DecodeAttention:
    """Attention of decoding sequences in all layers of one rule (`simulator.step.Attention`), tabulated like costs."""

    def __init__(self, physics: Any, rule: int, longest_tok: int) -> None:
        self._physics, self._rule, self._longest = physics, rule, longest_tok
        self._rows: dict[int, tuple[int, list]] = {}  # value and slope of each column, by cell

    def added(self, parts: tuple, sequences: int, k: int) -> tuple[float, float, float]:
        """`parts` (`Attention`) and, on top, those of `sequences` sequences that attend to k keys."""
        first, cells = self._rows.get(sequences) or self._row(sequences)
        cell = bisect_right(GRID, k) - 1
        x, (a, b, c, d, e, f), (seconds, compute_s, joules) = k - GRID[cell], cells[cell - first], parts
        return seconds + a + b * x, compute_s + c + d * x, joules + e + f * x

    def _row(self, sequences: int) -> tuple[int, list]:
        first, last = _cells(sequences, self._longest)
        points = np.array(GRID[first : last + 1], dtype=float)
        columns = []
        for values in self._physics.decode_attention(sequences, points, self._rule):
            columns += [values[:-1], np.diff(values) / np.diff(points)]
        row = self._rows[sequences] = first, np.stack(columns, axis=1).tolist()
        return row


class _NoRule:
    """Models without attention: contexts cost nothing."""

    def __init__(self, physics: Any, longest_tok: int) -> None:
        self._physics = physics
        self._costs: dict[int, tuple[float, float]] = {}

    def stretch(
        self, sequences, keys, slopes, steps: int, until_s: float = math.inf, extra: int = 0
    ) -> tuple[int, float, float, float]:
        """See `StepTable`."""
        if sequences not in self._costs:
            cost = self._physics.price(_decode_steps(sequences, np.empty((1, 0))))
            self._costs[sequences] = float(cost.seconds[0]), float(cost.joules[0])
        seconds, joules = self._costs[sequences]
        if steps * seconds > until_s:
            steps = min(steps, extra + _fewest(seconds, 0.0, 0.0, steps, until_s))
        return steps, steps * seconds, steps * joules, seconds


class _OneRule:
    """Costs that are linear in the keys within a cell."""

    def __init__(self, physics: Any, longest_tok: int) -> None:
        self._physics, self._longest = physics, longest_tok
        # By sequences: the first cell, and for each cell from there on seconds, joules and their slopes.
        self._rows: dict[int, tuple[int, list[tuple[float, float, float, float]]]] = {}

    def stretch(
        self, sequences, keys, slopes, steps: int, until_s: float = math.inf, extra: int = 0
    ) -> tuple[int, float, float, float]:
        """See `StepTable`."""
        k, slope = keys[0], slopes[0]
        first, cells = self._rows.get(sequences) or self._row(sequences)
        seconds = joules = 0.0
        taken, cell = 0, bisect_right(GRID, k) - 1
        while True:
            one, by_key, joule, joule_by_key = cells[cell - first]
            past, here = k - GRID[cell], steps - taken
            if slope and here > 1:
                inside = (GRID[cell + 1] - k - 1) // slope + 1
                if inside < here:
                    here = inside
            one += by_key * past
            growth = by_key * slope
            pairs = here * (here - 1) // 2
            lasts = here * one + growth * pairs
            if seconds + lasts > until_s:
                steps = min(steps, taken + extra + _fewest(one, growth, 0.0, here, until_s - seconds))
                until_s = math.inf
                if steps - taken < here:
                    here = steps - taken
                    pairs = here * (here - 1) // 2
                    lasts = here * one + growth * pairs
            seconds += lasts
            joules += here * (joule + joule_by_key * past) + joule_by_key * slope * pairs
            taken += here
            if taken == steps:
                return steps, seconds, joules, one + growth * (here - 1)
            k += slope * here
            cell = bisect_right(GRID, k, cell) - 1

    def _row(self, sequences: int) -> tuple[int, list]:
        first, last = _cells(sequences, self._longest)
        points = np.array(GRID[first : last + 1], dtype=float)
        cost = self._physics.price(_decode_steps(sequences, points[:, None]))
        columns = []
        for values in (cost.seconds, cost.joules):
            columns += [values[:-1].tolist(), (np.diff(values) / np.diff(points)).tolist()]
        row = self._rows[sequences] = first, list(zip(*columns))
        return row


class _TwoRules:
    """Costs that are bilinear in the keys of both rules within a cell."""

    def __init__(self, physics: Any, longest_tok: int) -> None:
        self._physics = physics
        self._cells: dict[tuple[int, int, int], tuple[float, ...]] = {}

    def stretch(
        self, sequences, keys, slopes, steps: int, until_s: float = math.inf, extra: int = 0
    ) -> tuple[int, float, float, float]:
        """See `StepTable`."""
        (k, w), (k_slope, w_slope) = keys, slopes
        seconds = joules = 0.0
        taken, k_cell, w_cell = 0, bisect_right(GRID, k) - 1, bisect_right(GRID, w) - 1
        while True:
            here = steps - taken
            if here > 1:
                if k_slope:
                    here = min(here, (GRID[k_cell + 1] - k - 1) // k_slope + 1)
                if w_slope:
                    here = min(here, (GRID[w_cell + 1] - w - 1) // w_slope + 1)
            cell = self._cells.get((sequences, k_cell, w_cell)) or self._block(sequences, k_cell, w_cell)
            x, y = k - GRID[k_cell], w - GRID[w_cell]
            one, growth, bend = _along(*cell[:4], x, y, k_slope, w_slope)
            pairs, squares = here * (here - 1) // 2, (here - 1) * here * (2 * here - 1) // 6
            lasts = here * one + growth * pairs + bend * squares
            if seconds + lasts > until_s:
                steps = min(steps, taken + extra + _fewest(one, growth, bend, here, until_s - seconds))
                until_s = math.inf
                continue
            seconds += lasts
            last_s = one + growth * (here - 1) + bend * (here - 1) ** 2
            one, growth, bend = _along(*cell[4:], x, y, k_slope, w_slope)
            joules += here * one + growth * pairs + bend * squares
            taken += here
            if taken == steps:
                return steps, seconds, joules, last_s
            k, w = k + k_slope * here, w + w_slope * here
            k_cell, w_cell = bisect_right(GRID, k, k_cell) - 1, bisect_right(GRID, w, w_cell) - 1

    def _block(self, sequences: int, k_cell: int, w_cell: int) -> tuple[float, ...]:
        """Compute a cell and its neighbours; they take no longer, and often come next."""
        k_first, w_first = k_cell // _BLOCK * _BLOCK, w_cell // _BLOCK * _BLOCK
        ks = np.array(GRID[k_first : k_first + _BLOCK + 1], dtype=float)
        ws = np.array(GRID[w_first : w_first + _BLOCK + 1], dtype=float)
        points = np.stack(np.meshgrid(ks, ws, indexing="ij"), axis=-1).reshape(-1, 2)
        cost = self._physics.price(_decode_steps(sequences, points))
        coefficients = []
        for values in (cost.seconds, cost.joules):
            v = values.reshape(len(ks), len(ws))
            by_k, by_w = np.diff(v, axis=0) / np.diff(ks)[:, None], np.diff(v, axis=1) / np.diff(ws)
            both = np.diff(by_w, axis=0) / np.diff(ks)[:, None]
            coefficients += [v[:-1, :-1], by_k[:, :-1], by_w[:-1], both]
        table = np.stack(coefficients, axis=-1).tolist()
        for i, row in enumerate(table):
            for j, cell in enumerate(row):
                self._cells[sequences, k_first + i, w_first + j] = tuple(cell)
        return self._cells[sequences, k_cell, w_cell]


class _ManyRules:
    """Models with three kinds of attention or more: the physics itself, many steps in one call."""

    def __init__(self, physics: Any, longest_tok: int) -> None:
        self._physics = physics

    def stretch(
        self, sequences, keys, slopes, steps: int, until_s: float = math.inf, extra: int = 0
    ) -> tuple[int, float, float, float]:
        """See `StepTable`."""
        grown = np.array(keys, dtype=float) + np.outer(np.arange(steps), slopes)
        cost = self._physics.price(_decode_steps(sequences, grown))
        ends = np.cumsum(cost.seconds)
        if ends[-1] > until_s:
            steps = min(steps, int(np.searchsorted(ends, until_s)) + 1 + extra)
        return steps, float(ends[steps - 1]), float(cost.joules[:steps].sum()), float(cost.seconds[steps - 1])


def _along(value, by_k, by_w, both, x: int, y: int, k_slope: int, w_slope: int) -> tuple[float, float, float]:
    """(value, growth, bend) of a bilinear function along the path (x + k_slope j, y + w_slope j): v + g j + b j²."""
    here = value + by_k * x + by_w * y + both * x * y
    return here, by_k * k_slope + by_w * w_slope + both * (x * w_slope + y * k_slope), both * k_slope * w_slope


def _fewest(one: float, growth: float, bend: float, most: int, until_s: float) -> int:
    """The fewest steps (1 to most) that last `until_s`, if step j (from 0) takes one + growth j + bend j²."""
    guess = until_s / one
    steps = min(most, max(1, int(until_s / (one + growth * guess / 2.0)) + 1))
    while steps > 1 and _lasts(one, growth, bend, steps - 1) >= until_s:
        steps -= 1
    while steps < most and _lasts(one, growth, bend, steps) < until_s:
        steps += 1
    return steps


def _lasts(one: float, growth: float, bend: float, steps: int) -> float:
    """Seconds of `steps` steps, see `_fewest`."""
    return steps * one + growth * (steps * (steps - 1) // 2) + bend * ((steps - 1) * steps * (2 * steps - 1) // 6)
