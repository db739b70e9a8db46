"""One replica in real time: it plans a batch, prices it, and lets it run until the batch has to change."""

from __future__ import annotations

import math
import struct
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.engine.batcher import Request
from simulator.engine.batching import Batching

# One row per stretch of equal steps, as `simulator.traffic.served.StepRecords` names them; `gaps` of one step.
FLOATS = ("start_s", "duration_s", "joules")
COUNTS = (
    "steps", "decode_sequences", "prefill_sequences", "prefill_tok", "sampled", "gaps", "waiting", "kv_blocks",
)  # fmt: skip
ROW = np.dtype([*((name, "<f8") for name in FLOATS), *((name, "<i8") for name in COUNTS)])
_packed = struct.Struct(f"<{len(FLOATS)}d{len(COUNTS)}q").pack
_SAMPLED = COUNTS.index("sampled") - COUNTS.index("decode_sequences")  # place among the columns that a plan knows


class Replica:
    """A scheduler (`Batcher`, or one that follows every token) with a clock.

    `end_s` is when the stretch under way ends (infinite: nothing under way). An arrival that could join cuts it short
    at the end of the step in which it comes; under async scheduling one step later, because the next step is planned
    when the present one begins.
    """

    def __init__(self, number: int, batcher: Batching, costs: Any, async_scheduling: bool = False) -> None:
        self.number, self.batcher, self._costs, self._async = number, batcher, costs, async_scheduling
        self._ahead = int(async_scheduling)  # steps that are planned already when somebody comes
        self.rows = bytearray()  # of ROW
        self.torn_gap_s = array("d")
        self.end_s = math.inf
        self.coming: deque[tuple[float, Request]] = deque()  # arrived, not yet seen by the scheduler
        self._under_way = False
        self._start_s = self._last_step_s = 0.0  # of the stretch, and of its last step
        self._steps, self._seconds, self._joules = 0, 0.0, 0.0
        self._row: tuple = ()
        self._gap_from: dict[int, float] = {}  # when preempted sequences had their last token
        self._settled = False

    @property
    def outstanding(self) -> int:
        """Requests that run, wait, or are about to."""
        return len(self.batcher.running) + self.waiting

    @property
    def waiting(self) -> int:
        """Requests that do not run yet."""
        return len(self.batcher.queue) + len(self.coming)

    def cached_blocks(self, request: Request, at_s: float) -> int:
        """Blocks of a request's prompt that the prefix cache holds at `at_s`."""
        batcher, into = self.batcher, -1
        if self._under_way:
            into = 0
            if self._steps > 1:  # which step is under way?
                keys, slopes, elapsed_s = batcher.keys(), batcher.slopes(), at_s - self._start_s
                into = self._costs.stretch(batcher.decoding, keys, slopes, self._steps, elapsed_s)[0] - 1
        return batcher.cached_blocks(request, batcher.step + into)

    def arrive(self, request: Request, at_s: float) -> None:
        """A request reaches the engine."""
        self.coming.append((at_s, request))
        if self._under_way and not self._settled and self.batcher.could_admit:
            self._cut(at_s)

    def begin(self, now_s: float, next_arrival_s: float = math.inf) -> list[Request]:
        """Plan and price what runs from now on; returns the requests scheduled first now.

        Whoever is known to come next is provided for at once, which is faster than to cut the stretch afterwards.
        """
        batcher, steps = self.batcher, 0
        while steps == 0:
            if self.coming:
                self._see_arrivals(now_s)
            steps = batcher.plan()
            if batcher.preempted:
                for request in batcher.preempted:
                    if request.written:
                        self._gap_from.setdefault(request.number, now_s)
            if steps == 0 and batcher.idle and not self.coming:
                return batcher.admitted
        self._under_way, self._settled = True, steps == 1
        self._start_s = self._last_step_s = now_s
        chunks, sequences = batcher.chunks, batcher.decoding
        keys = batcher.keys()
        if batcher.joins:
            sequences += len(batcher.joins)
            keys = self._with_joins(keys)
        new = completes = 0
        if chunks:
            new, completes, seconds, joules = self._costs.mixed(sequences, keys, chunks)
            self._steps, self._seconds, self._joules, self.end_s = 1, seconds, joules, now_s + seconds
        else:
            until_s = math.inf
            if steps > 1 and batcher.could_admit:
                until_s = next_arrival_s
                if self.coming:  # came while the last step ran, so that only the plan after this step sees it
                    steps, self._settled = 1, True
            self._run(steps, sequences, keys, until_s)
        self._row = (
            sequences, len(chunks), new, sequences + completes, batcher.decoding, len(batcher.queue) + len(self.coming),
            batcher.planned_blocks - batcher.unseen_blocks,
        )  # fmt: skip
        return batcher.admitted

    def _with_joins(self, keys: Sequence[int]) -> list[int]:
        """Keys by rule, those of sequences that go on decoding after a preemption included."""
        keys = list(keys)
        for cached in self.batcher.joins:
            keys = [k + rule.keys_at(cached) for k, rule in zip(keys, self._costs.rules)]
        return keys

    def complete(self) -> Batching:
        """The stretch ends, at `end_s`; `batcher.first`, `done` and `resumed` tell what it brought."""
        end_s, steps = self.end_s, self._steps
        batcher = self.batcher
        batcher.advance(steps)
        row = self._row
        if batcher.written_tok is not None:
            row = (*row[:_SAMPLED], batcher.written_tok, *row[_SAMPLED + 1 :])
        self.rows += _packed(self._start_s, self._seconds, self._joules, steps, *row)
        if batcher.resumed:
            for request in batcher.resumed:
                self.torn_gap_s.append(end_s - self._gap_from.pop(request.number))
        self.end_s, self._under_way = math.inf, False
        return batcher

    def _see_arrivals(self, now_s: float) -> None:
        """Hand over to the scheduler who came early enough for the plan that is made for now."""
        coming, batcher = self.coming, self.batcher
        limit_s = self._last_step_s if self._async and batcher.running else now_s
        while coming and coming[0][0] <= limit_s:
            batcher.push(coming.popleft()[1])

    def _cut(self, at_s: float) -> None:
        """End the stretch as soon as somebody who comes at `at_s` can join."""
        self._run(self._steps, self.batcher.decoding, self.batcher.keys(), at_s)

    def _run(self, steps: int, sequences: int, keys: Sequence[int], until_s: float) -> None:
        """Let decode steps run from `_start_s` on: at most `steps`, and no more than it takes to see an arrival."""
        start_s = self._start_s
        taken, seconds, self._joules, last_s = self._costs.stretch(
            sequences, keys, self.batcher.slopes(), steps, until_s - start_s, self._ahead
        )
        if taken < steps or until_s < start_s + seconds:
            self._settled = True
        self._steps, self._seconds, self.end_s = taken, seconds, start_s + seconds
        self._last_step_s = self.end_s - last_s if taken > 1 else start_s
