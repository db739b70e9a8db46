"""Replay a measured run in the simulator: the same configuration and load, predicted metrics by the schema's names."""

from __future__ import annotations

from collections.abc import Callable

from calibration.front_end import with_front_end
from calibration.open_loop import simulate_open_loop
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


def replay(setup: Setup, physics: StepModel) -> dict[str, float]:
    """Predicted value of every metric of the schema that can be computed, by column name. Raises Unsupported.

    Besides them `prefill_share`: the share of the run's time spent in steps with prefill. Metrics follow the schema's
    definitions; power is energy over the part of the run that the source's figure covers.
    """
    try:
        if setup.record.load == "open_loop":
            values = simulate_open_loop(
                setup.record, setup.model, setup.settings, setup.kv_blocks, physics, dp=setup.parallel.dp,
                async_scheduling=setup.async_scheduling,
            ).metrics()  # fmt: skip
        else:
            trajectory = trajectory_of(
                setup.record, setup.model, setup.settings, setup.kv_blocks, setup.parallel.dp, setup.async_scheduling
            )
            costs = physics.price(trajectory.steps)
            values = metrics(trajectory, costs.seconds, costs.joules)
    except UserError as error:
        raise Unsupported(str(error)) from None
    if setup.memory is not None:
        values["kv_capacity_tok"] = float(setup.memory.kv_capacity_tok * setup.parallel.dp)
    return with_front_end(values, setup, physics.calibration.parameters.engine)
