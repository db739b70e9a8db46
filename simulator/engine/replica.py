"""One replica in real time: it plans a batch, prices it, and lets it run until the batch has to change."""

from __future__ import annotations

import math
from array import array
from collections import deque
from typing import Any

from simulator.engine.batcher import Request

# One row per stretch of equal steps, as `simulator.traffic.served.StepRecords` names them.
ROW = (
    "replica", "start_s", "duration_s", "joules", "steps", "decode_sequences", "prefill_sequences", "prefill_tok",
    "sampled", "gaps", "waiting", "kv_blocks",
)  # fmt: skip


class Replica:
    """A scheduler (`Batcher`, or one that follows every token) with a clock.

    `end_s` is when the stretch under way ends (infinite: nothing under way). An arrival that could join cuts it short
    at the end of the step in which it comes; under async scheduling one step later, because the next step is planned
    when the present one begins.
    """

    def __init__(self, number: int, batcher: Any, costs: Any, async_scheduling: bool = False) -> None:
        self.number, self.batcher, self._costs, self._async = number, batcher, costs, async_scheduling
        self.rows = array("d")
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

    def arrive(self, request: Request, at_s: float) -> None:
        """A request reaches the engine."""
        self.coming.append((at_s, request))
        if self._under_way and not self._settled and self.batcher.could_admit:
            self._cut(at_s)

    def begin(self, now_s: float) -> list[Request]:
        """Plan and price what runs from now on; returns the requests scheduled first now."""
        batcher = self.batcher
        self._see_arrivals(now_s)
        steps = batcher.plan()
        while steps == 0:
            if batcher.idle and not self.coming:
                return batcher.admitted
            self._see_arrivals(now_s)
            steps = batcher.plan()
        joins, chunks, keys = batcher.joins, batcher.chunks, batcher.keys()
        sequences = batcher.decoding + len(joins)
        for cached in joins:
            keys = [k + rule.keys_at(cached) for k, rule in zip(keys, self._costs.rules)]
        self._settled = steps == 1
        if chunks:
            seconds, joules = self._costs.mixed(sequences, keys, [chunk[1:] for chunk in chunks])
        else:
            if self.coming and batcher.could_admit:  # came while the last step ran: seen by the plan after this step
                steps, self._settled = 1, True
            steps, seconds, joules = self._costs.stretch(sequences, keys, batcher.slopes(), steps)
        for request in batcher.preempted:
            if request.written:
                self._gap_from.setdefault(request.number, now_s)
        self._under_way = True
        self._start_s = self._last_step_s = now_s
        self._steps, self._seconds, self._joules = steps, seconds, joules
        self.end_s = now_s + seconds
        completes = prefill_tok = 0
        for _, new, _, last in chunks:
            prefill_tok += new
            completes += last
        self._row = (
            sequences, len(chunks), prefill_tok, sequences + completes, batcher.decoding, len(batcher.queue),
            batcher.held_blocks(),
        )  # fmt: skip
        return batcher.admitted

    def complete(self) -> Any:
        """The stretch ends, at `end_s`; `batcher.first`, `done` and `resumed` tell what it brought."""
        end_s, steps = self.end_s, self._steps
        batcher = self.batcher
        sequences, prompts, prefill_tok, sampled, decoding, waiting, blocks = self._row
        self.rows.extend(
            (self.number, self._start_s, self._seconds, self._joules, steps, sequences, prompts, prefill_tok, sampled,
             decoding * steps, waiting, blocks)
        )  # fmt: skip
        if self._async and steps > 1 and not self._settled:
            # Only a stretch that ran out by itself gets here: its last step began so much before the end.
            self._last_step_s = end_s - self._last_step_of(steps)
        batcher.advance(steps)
        for request in batcher.resumed:
            self.torn_gap_s.append(end_s - self._gap_from.pop(request.number))
        self.end_s, self._under_way = math.inf, False
        return batcher

    def _see_arrivals(self, now_s: float) -> None:
        """Hand over to the scheduler who came early enough for the plan that is made for now."""
        coming, batcher = self.coming, self.batcher
        if not coming:
            return
        limit_s = self._last_step_s if self._async and batcher.running else now_s
        while coming and coming[0][0] <= limit_s:
            batcher.push(coming.popleft()[1])

    def _cut(self, at_s: float) -> None:
        """End the stretch as soon as somebody who comes at `at_s` can join."""
        batcher, steps = self.batcher, self._steps
        sequences, keys, slopes = batcher.decoding, batcher.keys(), batcher.slopes()
        taken, seconds, joules = self._costs.stretch(sequences, keys, slopes, steps, at_s - self._start_s)
        if self._async and taken < steps:
            self._last_step_s = self._start_s + seconds
            taken, seconds, joules = self._costs.stretch(sequences, keys, slopes, taken + 1)
        self._settled = taken < steps
        self._steps, self._seconds, self._joules = taken, seconds, joules
        self.end_s = self._start_s + seconds

    def _last_step_of(self, steps: int) -> float:
        """Seconds that the last of the stretch's steps takes."""
        batcher = self.batcher
        keys = [k + slope * (steps - 1) for k, slope in zip(batcher.keys(), batcher.slopes())]
        return self._costs.decode(batcher.decoding, keys)[0]
