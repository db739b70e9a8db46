"""Run a plan through a back-end into a journal: warm-up, repetitions, power, failures, interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from calibration.collect import provenance
from calibration.collect.journal import Entry, Journal, whole
from calibration.collect.point import Backend, BackendError, EngineFacts, Observation, Point, seed_of
from calibration.collect.power import Meter, measured
from simulator.errors import UserError

MOST_REPETITIONS = 32  # as many runs back to back make up for a short window
FAILURES_IN_A_ROW = 3  # then the server is gone, and trying on would only fill the journal
Progress = Callable[[int, int], None]


@dataclass
class Session:
    """One stretch of measuring, from the start of the collector to its end.

    `seconds_per_point`: a point is run again and again until its windows last this long together (power sensors need
    about 5 s), at most `MOST_REPETITIONS` times. `meter`: of all devices together; None: no power. `on_measured` is
    called with every point that the journal holds now, for records that are kept up to date. `limit_s`: after so long
    by `clock` no further point is begun, but one at least is measured; `left` is then how many were not.
    """

    backend: Backend
    journal: Journal
    facts: EngineFacts  # as the journal has them
    seed: int = 0
    seconds_per_point: float = 1.0
    meter: Meter | None = None
    progress: Progress | None = None
    on_measured: Callable[[Entry], None] | None = None
    clock: Callable[[], float] = time.monotonic
    limit_s: float | None = None
    left: int = 0
    _warm: set[str] = field(default_factory=set)
    _failed_in_a_row: int = 0

    def run(self, plan: Sequence[Point], done: frozenset[str]) -> list[str]:
        """Measure the points of `plan` that are not `done`; returns the reasons of those that failed.

        BackendError when several points in a row fail. An interruption passes through: what is in the journal stays.
        """
        left = [point for point in plan if point.key not in done]
        reasons = []
        began_s = self.clock()
        for number, point in enumerate(left, len(plan) - len(left)):
            if point is not left[0] and self.limit_s is not None and self.clock() - began_s > self.limit_s:
                self.left = len(plan) - number
                return reasons
            if self.progress:
                self.progress(number, len(plan))
            reason = self._point(point)
            if reason is not None:
                reasons.append(f"{point.key}: {reason}")
                self._check_alive(reason)
        if self.progress:
            self.progress(len(plan), len(plan))
        return reasons

    def _check_alive(self, reason: str) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILURES_IN_A_ROW:
            raise BackendError(
                f"{FAILURES_IN_A_ROW} points in a row could not be measured, the last one because: {reason}; "
                "what was measured is kept, the same command goes on from there"
            )

    def _point(self, point: Point) -> str | None:
        """Measure one point into the journal; the reason if that fails."""
        try:
            if point.configuration not in self._warm:
                self.backend.warm_up(point)
                self._warm.add(point.configuration)
            self._note_facts()
            found, power, seeds = self._runs(point)
        except UserError as error:  # a BackendError above all; also a point that contradicts itself
            self.journal.failed(point, str(error))
            return str(error)
        self._failed_in_a_row = 0
        surroundings = {**provenance.surroundings(), "seeds": seeds, "warm_up": True}
        self.journal.measured(point, found, power, surroundings)
        if self.on_measured:
            self.on_measured(Entry(point, found, power, surroundings, self.facts))
        return None

    def _note_facts(self) -> None:
        """Write the engine's configuration where it is another than before: eager for CUDA graphs, say."""
        now = self.backend.facts()
        if now != self.facts:
            self.journal.engine(now, {})
            self.facts = now

    def _runs(self, point: Point) -> tuple[tuple[Observation, ...], dict[str, Any], list[int]]:
        """The runs of a point, back to back, and the power over all of them."""
        found: list[Observation] = []
        seeds: list[int] = []
        if self.meter is None:
            self._repeat(point, found, seeds)
            return tuple(found), {}, seeds
        with measured(self.meter) as result:
            self._repeat(point, found, seeds)
        window = msgspec.to_builtins(result.window)
        return tuple(found), {"meter": self.meter.name, "scope": self.meter.scope, **window}, seeds

    def _repeat(self, point: Point, found: list[Observation], seeds: list[int]) -> None:
        seconds = 0.0
        while not found or (seconds < self.seconds_per_point and len(found) < MOST_REPETITIONS):
            seeds.append(run_seed(self.seed, point, len(found)))
            seen = self.backend.run(point, seeds[-1])
            _check_any_answer(seen)
            found.append(seen)
            seconds += seen.end_s - seen.start_s
            if not whole([seen]):
                break  # kept as it is: the record says so, and the next start of the collector measures it again


def _check_any_answer(seen: Observation) -> None:
    """BackendError when no request of a run came to its end."""
    if not any(request.status == "ok" for request in seen.requests):
        raise BackendError(seen.requests[0].status if seen.requests else "the back-end sent no request")


def run_seed(seed: int, point: Point, repetition: int) -> int:
    """The seed of one run: the same for the same point of the same plan, also after a resumption."""
    return seed_of(f"{seed}/{point.key}/{repetition}")
