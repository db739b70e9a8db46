"""One measurement from what is asked for to records: plan, engine, journal, resumption, what is left behind."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from calibration.collect import provenance
from calibration.collect.asked import Asked
from calibration.collect.backends import open_backend
from calibration.collect.board import check_board, check_same_board
from calibration.collect.grid import (
    BETWEEN,
    FITTED,
    Grid,
    at_least_one,
    expected_facts,
    limits_of,
    points_of_grid,
    possible,
)
from calibration.collect.journal import Contents, Entry, Failure, Journal, check_same, read_journal
from calibration.collect.loads import traced, traffic_of
from calibration.collect.open_loops import chosen_rates, expect_open
from calibration.collect.planner import Plan, plan_grid, plan_sweep
from calibration.collect.point import Backend, EngineFacts, Point
from calibration.collect.power import Meter, Nothing, find_meter, measure_idle
from calibration.collect.sensitivity import Expected, expect
from calibration.collect.session import Progress, Session, run_seed
from calibration.collect.to_records import (
    JOURNAL,
    kv_capacity_tok,
    record_of,
    records_of,
    still_failed,
    with_noise,
    write_records,
    write_samples,
)
from calibration.records import RunRecord
from simulator.errors import UserError
from simulator.workload.traffic import Traffic

SECONDS_WITH_METER, SECONDS_WITHOUT = 5.0, 1.0
IDLE_S = 6.0
OVERRUN = 1.5  # times --minutes: then no further point is begun
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a measurement left behind. `seconds`: of this start of the collector.

    `left`: points of the plan that were not tried, as the time was used up.
    """

    folder: Path
    planned: int
    records: list[RunRecord]
    failures: list[Failure]
    seconds: float
    left: int = 0


class Campaign:
    """A measurement that can be planned, run, interrupted and gone on with. `clock`: seconds, monotonic."""

    def __init__(self, asked: Asked, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked, self.clock = asked, clock

    def expected_plan(self) -> Plan:
        """The plan for an engine as the simulator expects it to be configured; nothing is started."""
        asked = self.asked
        server = asked.backend in ("openai", "vllm-bench")
        facts = expected_facts(asked.instance, server=server, engine=asked.engine, version=asked.version)
        meter = asked.meter != "none" and asked.where != "cpu"
        return self.plan(facts, self._seconds_per_point(meter))

    def plan(self, facts: EngineFacts, seconds_per_point: float) -> Plan:
        """The plan for an engine of this configuration. UserError when nothing can be measured."""
        asked = self.asked
        if asked.grid is not None:
            return plan_grid(
                self._expect(asked.grid, facts), seconds_per_point=seconds_per_point, seed=asked.seed,
                repeats=asked.repeats,
            )  # fmt: skip
        between = None if asked.held_out == 0 else self._expect(BETWEEN, facts, held_out=True)
        return plan_sweep(
            self._expect(FITTED, facts), between, budget_s=60.0 * asked.minutes, seconds_per_point=seconds_per_point,
            seed=asked.seed, repeats=asked.repeats, held_out=asked.held_out,
        )  # fmt: skip

    def _expect(self, grid: Grid, facts: EngineFacts, held_out: bool = False) -> Expected:
        asked = self.asked
        points = points_of_grid(grid, asked.load, asked.graphs, held_out)
        if asked.load == "open_loop" and asked.chosen:
            points = self._chosen_rates(grid, facts)
        if asked.trace:
            points = traced(points, asked.trace)
        kept, refused = possible(points, limits_of(facts, asked.model, self._planned_kv_tok()))
        at_least_one(kept, refused)
        left_out = tuple(refused) if asked.grid else ()
        if asked.load == "open_loop":
            return expect_open(kept, facts, asked.gpu, asked.power_mode, self._traffic, left_out)
        return expect(kept, facts, asked.gpu, asked.power_mode, left_out)

    def _chosen_rates(self, grid: Grid, facts: EngineFacts) -> list[Point]:
        """Rates of an open loop for the lengths that the engine can take."""
        asked = self.asked
        points = points_of_grid(replace(grid, rates=(1.0,)), asked.load, asked.graphs)
        kept, refused = possible(points, limits_of(facts, asked.model, self._planned_kv_tok()))
        at_least_one(kept, refused)
        return chosen_rates(
            kept, facts, asked.gpu, asked.power_mode, budget_s=60.0 * asked.minutes, repeats=asked.repeats,
            num_requests=grid.num_requests,
        )  # fmt: skip

    def _traffic(self, point: Point) -> Traffic:
        """The requests of the first run of a point."""
        return traffic_of(point, run_seed(self.asked.seed, point, 0), self.asked.trace)

    def _planned_kv_tok(self) -> float | None:
        """Tokens of KV cache by the simulator's memory plan; None where the model does not fit by it."""
        asked = self.asked
        try:
            return kv_capacity_tok(
                expected_facts(asked.instance, server=False, engine=asked.engine, version=asked.version)
            )
        except UserError:
            return None

    def _seconds_per_point(self, meter: bool) -> float:
        if self.asked.seconds_per_point is not None:
            return self.asked.seconds_per_point
        return SECONDS_WITH_METER if meter and not self.asked.dummy_weights else SECONDS_WITHOUT

    def measure(self, folder: Path, progress: Progress, say: Say) -> Result:
        """Measure what is not measured yet, and write records and samples, also after an interruption.

        UserError when the folder holds another measurement or cannot be written; BackendError when the engine fails.
        """
        began, left = self.clock(), 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"folder '{folder}' cannot be made: {error.strerror}") from None
        path = folder / JOURNAL
        with Journal(path) as journal, _terminable():
            before = read_journal(path)
            if before is not None:
                check_same(before.manifest["asked"], _plain(self.asked.to_dict()), f"'{path}'")
            try:
                if before is None or _left(before):
                    left = self._measure(journal, before, folder, progress, say)
            except KeyboardInterrupt:
                say(f"interrupted: what was measured is in {folder}, the same command goes on from there")
                raise
            finally:
                after = read_journal(path)
                if after is not None:
                    write_records(folder, records_of(after))
                    write_samples(folder, after)
        assert after is not None
        return Result(folder, len(after.plan), records_of(after), still_failed(after), self.clock() - began, left)

    def _measure(self, journal: Journal, before: Contents | None, folder: Path, progress: Progress, say: Say) -> int:
        """Measure what is left of the plan; returns how many points are still left, as the time was used up."""
        asked = self.asked
        meter = self._meter(say)
        name = before.manifest["set"] if before is not None else provenance.new_name(asked.to_dict())
        salt = f"{name}/{0 if before is None else len(before.starts)}"
        backend = open_backend(asked.backend, replace(asked.options, salt=salt))
        try:
            facts, where = backend.facts(), {**self._provenance(), "salt": salt}
            for warning in self._warnings(where, before):
                say(f"warning: {warning}")
            seconds = self._seconds_per_point(not isinstance(meter, Nothing))
            if before is None:
                plan = self.plan(facts, seconds)
                manifest = self._manifest(name, facts, where, plan)
                say(f"{len(plan.points)} points, about {plan.total_s / 60.0:.1f} minutes")
                journal.start(manifest)
                points, done, known = list(plan.points), frozenset(), []
            else:
                manifest, points, done, known = before.manifest, before.plan, before.done, before.latest
                check_same(_plain(manifest["facts"]), _plain(facts), f"'{journal.path}'")
                say(f"going on: {len(done)} of {len(points)} points are measured")
            journal.engine(facts, where)
            rows = _Rows(folder, manifest, known)
            limit_s = 60.0 * OVERRUN * asked.minutes if asked.chosen else None
            session = Session(
                backend, journal, facts, seed=asked.seed, seconds_per_point=seconds, meter=meter, progress=progress,
                on_measured=rows.add, clock=self.clock, limit_s=limit_s,
            )  # fmt: skip
            session.run(points, done)
            return session.left
        finally:
            _close(backend)
            meter.close()

    def _meter(self, say: Say) -> Meter:
        """The power meter of all devices, with its idle baseline taken while nothing runs."""
        asked = self.asked
        if asked.meter is None and asked.where == "cpu":
            return Nothing("the model runs on the CPU")
        if asked.meter is None and asked.base_url and asked.allow_remote:
            return Nothing("the server may be another machine")
        meter = find_meter(asked.meter, list(range(asked.tensor_parallel_size)))
        if isinstance(meter, Nothing):
            say(f"no power: {meter.reason}")
        elif not asked.dummy_weights:
            measure_idle(meter, IDLE_S)
        return meter

    def _provenance(self) -> dict[str, Any]:
        found = provenance.provenance(range(self.asked.tensor_parallel_size))
        return {"command": provenance.command_line(), **found}

    def _warnings(self, where: dict[str, Any], before: Contents | None) -> list[str]:
        """What speaks against the board in the machine. UserError when it is not that of the sheet, or of `before`."""
        if self.asked.where == "cpu" or self.asked.allow_remote:
            return []
        warnings = check_board(self.asked.device, where["board"])
        if before is not None:
            warnings += check_same_board(before.manifest["provenance"]["board"], where["board"])
        return warnings

    def _manifest(self, name: str, facts: EngineFacts, where: dict[str, Any], plan: Plan) -> dict[str, Any]:
        points = _plain(plan.points)
        return {
            "set": name,
            "asked": self.asked.to_dict(),
            "gpu": self.asked.gpu,
            "seed": self.asked.seed,
            "facts": facts,
            "provenance": where,
            "plan": points,
            "plan_hash": hashlib.sha256(msgspec.json.encode(points)).hexdigest(),
            "expected_s": [round(s, 3) for s in plan.seconds],
        }


class _Rows:
    """runs.csv and held_out.csv, written anew after every point."""

    def __init__(self, folder: Path, manifest: dict[str, Any], known: list[Entry]) -> None:
        self.folder, self.manifest = folder, manifest
        self.rows: dict[str, tuple[Point, RunRecord]] = {}
        self.add(*known)  # a kill may have come between the journal and the files

    def add(self, *entries: Entry) -> None:
        """Take in more points and write the files."""
        for entry in entries:
            self.rows[entry.point.key] = (entry.point, record_of(entry, self.manifest))
        write_records(self.folder, with_noise(self.rows.values()))


def _left(contents: Contents) -> bool:
    """Whether points of the plan are still to be measured."""
    return any(point.key not in contents.done for point in contents.plan)


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _close(backend: Backend) -> None:
    """Close the engine, whatever happens: a second Ctrl-C must not leave it behind."""
    try:
        backend.close()
    except KeyboardInterrupt:
        backend.close()
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat a request to end (SIGTERM) like Ctrl-C, so that engines are closed and records written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
