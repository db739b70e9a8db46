"""What the checks look at: every run with its configuration, its prediction and the physical floor of its times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from calibration.points import architecture_key
from calibration.records import RunRecord
from calibration.setup import Setup
from simulator.profile import Calibration
from validate.noise import NoiseFloor, noise_floor
from validate.predict import Prediction
from validate.sweeps import Sweep, sweeps_of

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")


@dataclass(frozen=True)
class Case:
    """One measured run beside what was simulated for it.

    simulated: the configuration that was really simulated and its figures, in the schema of the measurement; None when
    there is none. Of this simulator, or of another one that a file speaks for; `prediction` is always ours, and the
    intervals with it.
    """

    record: RunRecord
    prediction: Prediction
    simulated: RunRecord | None = None

    @property
    def id(self) -> str:
        """run_id of the record."""
        return self.record.run_id

    @property
    def setup(self) -> Setup | None:
        """What the record resolves to: device, model, precision, settings; None when it cannot be simulated."""
        return self.prediction.setup

    @property
    def floor(self) -> Mapping[str, float]:
        """By metric: seconds that no measurement of this configuration can be below, tokens per second not above.

        The same requests in the same schedule of steps at the data sheet's full bandwidth and dense peaks, with nothing
        else to wait for (`calibration.roofline_baseline`). Empty when the run cannot be simulated.
        """
        return self.prediction.outcome.floor

    @cached_property
    def measured(self) -> dict[str, float]:
        """Measured metrics by column name."""
        return self.record.measured()

    @cached_property
    def ratios(self) -> dict[str, float]:
        """simulated / measured by metric, where there are both."""
        if self.simulated is None:
            return {}
        theirs = self.simulated.measured()
        return {name: theirs[name] / value for name, value in self.measured.items() if name in theirs and value}

    @property
    def architecture(self) -> tuple | None:
        """What makes two models the same for a cost model."""
        return None if self.setup is None else architecture_key(self.setup)


@dataclass(frozen=True)
class Evidence:
    """All runs of one file. own: whether the simulated side is this simulator; else it came as a file.

    profiles: calibrations used, by id. fitted: ids of runs that a calibration was fitted on, found by content.
    """

    source: str
    cases: Sequence[Case]
    profiles: dict[str, Calibration]
    fitted: frozenset[str]
    own: bool = True

    @cached_property
    def by_id(self) -> dict[str, Case]:
        """Cases by run id."""
        return {case.id: case for case in self.cases}

    @cached_property
    def sweeps(self) -> tuple[Sweep, ...]:
        """Runs that differ along one axis only, at least three of them."""
        return sweeps_of([case.record for case in self.cases])

    @cached_property
    def noise(self) -> NoiseFloor:
        """How far repeats of one configuration lie apart."""
        return noise_floor([case.record for case in self.cases])

    def campaigns(self) -> dict[tuple[str, ...], list[Case]]:
        """Cases by what shares a machine and a rig: source, GPU, engine, and the series that flags name."""
        found: dict[tuple[str, ...], list[Case]] = {}
        for case in self.cases:
            r = case.record
            found.setdefault((r.source, r.gpu, r.engine or "", r.campaign), []).append(case)
        return found
