"""Predict every measured metric of every run, with a 90 % interval and a status."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from calibration.points import spread_kind
from calibration.records import RunRecord
from calibration.replay import Replay, StepModels, replay
from calibration.setup import Setup, Unsupported, calibration_for, operation, resolve
from simulator.profile import Z90, Calibration

# Activation peak and engine overhead are estimates: a few GB of tens.
KV_CAPACITY_LOG_SD = 0.06
# Power sampled about once a second over a whole run of seconds holds start-up and idle samples, how many is not stated:
# such figures lie up to a factor of two below the steady power of the same run.
WHOLE_RUN_POWER_LOG_SD = 0.35


@dataclass(frozen=True)
class Prediction:
    """One run: status and, per measured metric, (value, low, high) of the 90 % interval, in the schema's units."""

    record: RunRecord
    status: str  # "ok", "extrapolated" or "unsupported: reason"
    values: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    power_scope: str = ""  # what the profile's power covers
    device: str = ""  # id, and the power mode if it is not the default
    setup: Setup | None = None  # what the record resolves to; None: it cannot be simulated
    profile: str = ""  # id of the calibration
    outcome: Replay = field(default_factory=lambda: Replay({}, {}))  # every metric, measured or not, and their floor


def _spread(metric: str, setup: Setup, profile: Calibration, outside: tuple[str, ...]) -> float:
    if metric == "kv_capacity_tok":
        return KV_CAPACITY_LOG_SD
    kind = spread_kind(setup, metric)
    spread = profile.spread(kind, outside)
    if kind in ("power", "energy") and setup.record.flagged("whole_run_power"):
        spread = math.hypot(spread, WHOLE_RUN_POWER_LOG_SD)
    return spread


class Predictor:
    """Replays run records; profiles and physics are built once per configuration."""

    def __init__(self, profile_path: str | None = None) -> None:
        self.profile_path = profile_path
        self.profiles: dict[str, Calibration] = {}  # those used, by id
        self._by_device: dict[tuple, Calibration] = {}
        self._models = StepModels()

    def predict(self, record: RunRecord) -> Prediction:
        """Prediction of one run; never raises for a run that cannot be simulated."""
        try:
            setup = resolve(record)
            profile = self._profile(setup)
            outcome = replay(setup, self._models.get(setup, lambda: profile))
        except Unsupported as reason:
            return Prediction(record, f"unsupported: {reason}")
        outside = extrapolations(setup, profile)
        out = {}
        for metric in (name for name in record.measured() if name in outcome.values):
            value = outcome.values[metric]
            factor = math.exp(Z90 * _spread(metric, setup, profile, outside))
            out[metric] = (value, value / factor, value * factor)
        return Prediction(
            record, "extrapolated" if outside else "ok", out, outside, profile.power_scope, _device_name(setup), setup,
            profile.id, outcome,
        )  # fmt: skip

    def predict_all(
        self, records: Sequence[RunRecord], progress: Callable[[int, int], None] | None = None
    ) -> list[Prediction]:
        """Predictions in the order of the records."""
        out = []
        for record in records:
            out.append(self.predict(record))
            if progress:
                progress(len(out), len(records))
        return out

    def _profile(self, setup: Setup) -> Calibration:
        device = setup.device
        key = (device.id, device.power_mode, device.power.limit_w, setup.record.engine, setup.version)
        if key not in self._by_device:
            profile = self._by_device[key] = calibration_for(setup, self.profile_path)
            self.profiles[profile.id] = profile
        return self._by_device[key]


def _device_name(setup: Setup) -> str:
    device = setup.device
    return device.id if device.power_mode == device.default_power_mode else f"{device.id} {device.power_mode}"


def extrapolations(setup: Setup, profile: Calibration) -> tuple[str, ...]:
    """How a run leaves the range that the profile was fitted on."""
    outside = (*profile.extrapolations(operation(setup)), *setup.stand_ins)
    family = setup.family
    other_engine = (setup.record.engine or family.engine) != family.engine
    other_version = profile.engine != family.id and setup.version is not None
    if other_engine or other_version:
        ran = " ".join(part for part in (setup.record.engine, setup.version) if part)
        outside += (f"engine {ran}; the calibration is for {profile.engine}",)
    return outside
