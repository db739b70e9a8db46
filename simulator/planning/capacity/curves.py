"""Finalists under other loads, for pictures: how near they come to their limits as the load grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.planning.capacity.lab import Lab
from simulator.planning.capacity.limits import Limit
from simulator.planning.capacity.plan import Option
from simulator.planning.capacity.search import run_all
from simulator.planning.capacity.workload import Workload

POINTS = 8
BEYOND = 1.15  # of the load that a finalist bears


@dataclass(frozen=True)
class Curve:
    """One deployment: factors on the asked load (P,), and value / limit of each limit (P,) by name."""

    loads: np.ndarray
    ratios: dict[str, np.ndarray]
    output_tok_per_s: np.ndarray


def load_curves(lab: Lab, options: Sequence[Option], limits: Sequence[Limit], jobs: int = 1) -> list[Curve]:
    """A curve for each option, from a quarter of the load that it bears to a little beyond it."""
    return run_all(lab, jobs, _curve, [(option, tuple(limits)) for option in options])


def _curve(lab: Lab, option: Option, limits: tuple[Limit, ...]) -> Curve:
    workload: Workload = lab.workload
    loads = np.linspace(0.25, BEYOND, POINTS) * option.margin.head_room
    trials = [lab.trial(option.variant, option.replicas, float(load) / workload.reserve) for load in loads]
    return Curve(
        loads,
        {limit.name: np.array([trial.ratios[limit.name] for trial in trials]) for limit in limits},
        np.array([trial.figures["output_tok_per_s"] for trial in trials]),
    )
