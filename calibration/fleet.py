"""Many measured runs, each scheduled once, priced together: what makes a fit of hundreds of runs fast.

Runs of one deployment (device, model, precision, split) share a step model; all their rows are priced in one call.
Prices are kept as long as no parameter that the deployment depends on changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.condensed import Condensed, condensed
from calibration.front_end import with_front_end
from calibration.setup import Setup, Unsupported, step_model
from calibration.trajectory import trajectory_of
from simulator.errors import UserError
from simulator.operators import plan_forward
from simulator.parameters import GROUP_SPECS, MOE_GROUPS
from simulator.profile import Calibration
from simulator.steps import Steps
from simulator.token_costs import gemm_group

CONDENSED_ROWS = 60
_KEPT = 3  # prices kept per deployment: the present parameters and the last perturbed ones


@dataclass
class Deployment:
    """Runs that one step model prices: their condensed rows one after the other."""

    setup: Setup
    groups: tuple[str, ...]  # of parameters that their times depend on
    members: list[int] = field(default_factory=list)
    parts: list[Condensed] = field(default_factory=list)
    steps: Steps | None = None
    kept: dict[tuple, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def groups_used(setup: Setup) -> tuple[str, ...]:
    """Parameter groups that the times of a deployment depend on."""
    plan = plan_forward(setup.model, setup.precision, setup.parallel)
    products = {gemm_group(gemm) for gemm in plan.gemms}
    used = {
        **{name: name in products for name in ("gemm8", "gemm_weight_only")},
        "gemm16": True,
        "prefill": bool(plan.attention),
        "decode": bool(plan.attention),
        **{name: any(work.kernel == name for work in plan.experts) for name in MOE_GROUPS},
        "collective": bool(plan.messages) or setup.parallel.pp > 1,
        "engine": True,
        "power": True,  # a power limit stretches time
    }
    return tuple(name for name in GROUP_SPECS if used[name])


class Fleet:
    """Setups with their trajectories. `metrics`: for each setup the names that will be asked for.

    Setups that cannot be scheduled are left out; `setups` lists the others, `refused` says why.
    """

    def __init__(
        self,
        setups: Sequence[Setup],
        metrics: Callable[[Setup], Sequence[str]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.setups: list[Setup] = []
        self.refused: dict[str, str] = {}
        self._deployments: dict[tuple, Deployment] = {}
        for done, setup in enumerate(setups, 1):
            try:
                condensed = condense(setup, metrics(setup))
            except (Unsupported, UserError) as error:
                self.refused[setup.record.run_id] = str(error)
            else:
                self._add(setup, condensed)
            if progress:
                progress(done, len(setups))
        for deployment in self._deployments.values():
            deployment.steps = Steps.concatenate([part.steps for part in deployment.parts])

    def _add(self, setup: Setup, condensed: Condensed) -> None:
        key = setup.deployment
        if key not in self._deployments:
            self._deployments[key] = Deployment(setup, groups_used(setup))
        deployment = self._deployments[key]
        deployment.members.append(len(self.setups))
        deployment.parts.append(condensed)
        self.setups.append(setup)

    def used_groups(self, gpu: str | None = None) -> set[str]:
        """Parameter groups that some deployment (on `gpu`) depends on."""
        found = (d for d in self._deployments.values() if gpu is None or d.setup.device.id == gpu)
        return {group for deployment in found for group in deployment.groups}

    def predict(self, calibration: Callable[[Setup], Calibration]) -> list[Mapping[str, float]]:
        """Predicted metrics of every setup, in the order of `setups`."""
        out: list[Mapping[str, float]] = [{}] * len(self.setups)
        for deployment in self._deployments.values():
            chosen = calibration(deployment.setup)
            seconds, joules = _priced(deployment, chosen)
            start = 0
            for member, part in zip(deployment.members, deployment.parts):
                end = start + len(part.steps)
                values = part.metrics(seconds[start:end], joules[start:end])
                out[member] = with_front_end(values, self.setups[member], chosen.parameters.engine)
                start = end
        return out


def condense(setup: Setup, names: Sequence[str]) -> Condensed:
    """The weighted rows of a run for the metrics `names`. Unsupported or UserError if it cannot be scheduled."""
    trajectory = trajectory_of(
        setup.record, setup.model, setup.settings, setup.kv_blocks, setup.parallel.dp, setup.async_scheduling
    )
    return condensed(trajectory, tuple(names), CONDENSED_ROWS)


def _priced(deployment: Deployment, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and joules of all rows; the same parameters are priced once."""
    parameters = calibration.parameters
    key = (calibration.idle_w, *(getattr(parameters, group) for group in deployment.groups))
    if key not in deployment.kept:
        costs = step_model(deployment.setup, calibration).price(deployment.steps)
        while len(deployment.kept) >= _KEPT:
            del deployment.kept[next(iter(deployment.kept))]
        deployment.kept[key] = (costs.seconds, costs.joules)
    return deployment.kept[key]
