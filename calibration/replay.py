"""Replay a measured run in the simulator: the same configuration and load, predicted metrics by the schema's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calibration.front_end import with_front_end
from calibration.open_loop import simulate_open_loop
from calibration.roofline_baseline import PlainRoofline
from calibration.setup import Setup, Unsupported, step_model
from calibration.trajectory import trajectory_of
from calibration.trajectory_metrics import metrics
from simulator.errors import UserError
from simulator.profile import Calibration
from simulator.step import StepModel


class StepModels:
    """Step models by configuration, each built once."""

    def __init__(self) -> None:
        self._built: dict[tuple, StepModel] = {}

    def get(self, setup: Setup, calibration: Callable[[], Calibration]) -> StepModel:
        """The physics of a run; `calibration` is only asked when this configuration is new."""
        key = setup.deployment
        if key not in self._built:
            self._built[key] = step_model(setup, calibration())
        return self._built[key]


@dataclass(frozen=True)
class Replay:
    """One run as simulated. Metrics by the schema's column names, in its units.

    values: predictions of every metric that can be computed, and `prefill_share`: the share of the run's time spent in
    steps with prefill. floor: times and rates of the same requests at the data sheet's full bandwidth and peaks, with
    nothing else to wait for: no measurement of this configuration can be better.
    """

    values: Mapping[str, float]
    floor: Mapping[str, float]


def replay(setup: Setup, physics: StepModel) -> Replay:
    """Simulate a measured run. Raises Unsupported.

    Metrics follow the schema's definitions; power is energy over the part of the run that the source's figure covers.
    """
    try:
        values, floor = (_open_loop if setup.record.load == "open_loop" else _scheduled)(setup, physics)
    except UserError as error:
        raise Unsupported(str(error)) from None
    if setup.memory is not None:
        values["kv_capacity_tok"] = float(setup.memory.kv_capacity_tok * setup.parallel.dp)
    return Replay(with_front_end(values, setup, physics.calibration.parameters.engine), floor)


def _open_loop(setup: Setup, physics: StepModel) -> tuple[dict[str, float], dict[str, float]]:
    def served(costs: Any) -> dict[str, float]:
        return simulate_open_loop(
            setup.record, setup.model, setup.settings, setup.kv_blocks, costs, dp=setup.parallel.dp,
            async_scheduling=setup.async_scheduling,
        ).metrics()  # fmt: skip

    return served(physics), _of_time(served(PlainRoofline.of(setup)))


def _scheduled(setup: Setup, physics: StepModel) -> tuple[dict[str, float], dict[str, float]]:
    trajectory = trajectory_of(
        setup.record, setup.model, setup.settings, setup.kv_blocks, setup.parallel.dp, setup.async_scheduling
    )
    costs = physics.price(trajectory.steps)
    values = metrics(trajectory, costs.seconds, costs.joules)
    return values, _of_time(metrics(trajectory, PlainRoofline.of(setup).price(trajectory.steps).seconds))


def _of_time(values: Mapping[str, float]) -> dict[str, float]:
    """Without power and energy, which a roofline of time says nothing of."""
    return {name: value for name, value in values.items() if not name.startswith(("power", "energy", "prefill_share"))}
