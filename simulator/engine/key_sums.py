"""Keys that all decoding sequences attend to in one layer, as a number that is affine in the step.

A decoding sequence takes part in every step, so the sum over the batch changes its slope only when a sequence joins
or leaves, fills its window, or enters a new chunk of attention. One tracker per key rule (`simulator.keys`); between
two such events `at(step)` costs two operations, whatever the size of the batch.
"""

from __future__ import annotations

import heapq
from typing import Any

from simulator.keys import KeyRule

NEVER = 1 << 62


class AllKeys:
    """Every key before the query: each sequence adds one per step."""

    def __init__(self) -> None:
        self._base = self.slope = 0

    def join(self, sequence: Any) -> None:
        """`sequence` decodes from step `sequence.start` on, with `sequence.computed` tokens in the cache before it."""
        self._base += sequence.computed + 1 - sequence.start
        self.slope += 1

    def leave(self, sequence: Any) -> None:
        """It does not take part in the next step."""
        self._base -= sequence.computed + 1 - sequence.start
        self.slope -= 1

    def at(self, step: int) -> int:
        """Keys of step `step`, which no event precedes that has not been told."""
        return self._base + self.slope * step

    def now(self, step: int) -> tuple[int]:
        """`at` as the only entry of a list of rules."""
        return (self._base + self.slope * step,)

    def last_alike(self, step: int) -> int:
        """The last step up to which the keys of `step` grow by `slope` per step."""
        return NEVER


class WindowKeys:
    """The latest `window` keys, the query's own included: a sequence grows until its window is full."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._base = self.slope = self._full = 0
        self._full_at: dict[Any, int] = {}  # of the growing: the step from which on the window is full
        self._events: list[tuple[int, int, Any]] = []  # the same as a heap, with entries of some that left

    def join(self, sequence: Any) -> None:
        full_at = sequence.start + self._window - 1 - sequence.computed
        if full_at <= sequence.start:
            self._full += 1
            return
        self._base += sequence.computed + 1 - sequence.start
        self.slope += 1
        self._full_at[sequence] = full_at
        heapq.heappush(self._events, (full_at, sequence.admission, sequence))

    def leave(self, sequence: Any) -> None:
        if self._full_at.pop(sequence, None) is None:
            self._full -= 1
            return
        self._base -= sequence.computed + 1 - sequence.start
        self.slope -= 1

    def at(self, step: int) -> int:
        self._pass(step)
        return self._base + self.slope * step + self._window * self._full

    def last_alike(self, step: int) -> int:
        self._pass(step)
        return self._events[0][0] if self._events else NEVER

    def _pass(self, step: int) -> None:
        """Windows that are full at `step` stop growing; the keys of that step are the same either way."""
        events = self._events
        while events:
            full_at, _, sequence = events[0]
            if self._full_at.get(sequence) == full_at:
                if full_at > step:
                    return
                del self._full_at[sequence]
                self._base -= sequence.computed + 1 - sequence.start
                self.slope -= 1
                self._full += 1
            heapq.heappop(events)


class ChunkKeys:
    """The query's own chunk of `window` positions up to itself: a sequence grows, and starts again at one key."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._base = self.slope = 0
        self._again: dict[Any, int] = {}  # the step at which a sequence starts again: then it has one key
        self._events: list[tuple[int, int, Any]] = []  # (step at which a sequence starts again, admission, sequence)

    def join(self, sequence: Any) -> None:
        again = self._again[sequence] = sequence.start + self._window - sequence.computed % self._window
        self._base += self._window + 1 - again
        self.slope += 1
        heapq.heappush(self._events, (again, sequence.admission, sequence))

    def leave(self, sequence: Any) -> None:
        self._base -= self._window + 1 - self._again.pop(sequence)
        self.slope -= 1

    def at(self, step: int) -> int:
        self._pass(step)
        return self._base + self.slope * step

    def last_alike(self, step: int) -> int:
        self._pass(step)
        return self._events[0][0] - 1 if self._events else NEVER

    def _pass(self, step: int) -> None:
        """Sequences that start a new chunk at or before `step`."""
        events, window = self._events, self._window
        while events:
            again, admission, sequence = events[0]
            if self._again.get(sequence) != again:
                heapq.heappop(events)  # of a sequence that left
                continue
            if again > step:
                return
            heapq.heapreplace(events, (again + window, admission, sequence))
            self._again[sequence] = again + window
            self._base -= window


def key_sum(rule: KeyRule) -> AllKeys | WindowKeys | ChunkKeys:
    """The tracker of a rule."""
    if rule.window_tok is None:
        return AllKeys()
    return ChunkKeys(rule.window_tok) if rule.chunked else WindowKeys(rule.window_tok)
