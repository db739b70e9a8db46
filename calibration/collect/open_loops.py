"""Open loops before they are measured: how long they last, and which rates are worth measuring.

Nothing in them is fitted, so there is nothing to choose by: rates are shares of what the simulator expects the server
to be able to serve. Their durations are those of the very requests that will be sent, served by the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.collect.loads import MOST
from calibration.collect.point import EngineFacts, Point
from calibration.collect.sensitivity import Expected
from calibration.collect.to_records import configuration
from calibration.records import RunRecord
from calibration.setup import Setup, Unsupported, calibration_for, resolve, step_model
from calibration.trajectory import room
from simulator.errors import UserError
from simulator.step_table import StepTable
from simulator.traffic.cluster import Deployment, serve
from simulator.workload.loads import burst
from simulator.workload.traffic import Traffic

SHARES = (0.2, 0.4, 0.6, 0.8, 0.9)  # of the capacity: from an idle server to long queues
WAVES, MOST_OF_BURST = 4, 4096  # requests by which the capacity is found: so many per seat
FEWEST_CHOSEN = 32  # requests of a chosen point: with fewer, nobody can tell whether a queue grows
WARM_UP_REQUESTS = 64
SPARE = 0.9  # of the time that a plan gives to open loops: the last answers come after the last arrival

TrafficOf = Callable[[Point], Traffic]


@dataclass(frozen=True)
class Server:
    """What the simulator expects to serve a point."""

    setup: Setup
    costs: StepTable

    def seconds(self, traffic: Traffic) -> float:
        """From the first request's arrival clock to the last token."""
        served = serve(traffic, Deployment(self.costs, self.setup.settings, self.setup.kv_blocks))
        if bool(served.requests.refused.all()):
            raise UserError("every request is longer than the server takes")
        return served.end_s

    def capacity_rps(self, point: Point) -> float:
        """Requests per second while the server is full, about: a burst of some per seat, through its duration."""
        settings = self.setup.settings
        held = self.setup.kv_blocks * settings.block_size // (point.input_tok + point.output_tok)
        count = min(MOST_OF_BURST, WAVES * max(1, min(settings.max_num_seqs, held)))
        requests = burst(count, point.input_tok, point.output_tok, np.random.default_rng(0))
        return count / self.seconds(requests)


def server_of(point: Point, facts: EngineFacts, gpu: str, power_mode: str | None) -> Server:
    """UserError for a point that the simulator cannot serve."""
    how = configuration(replace(point, load="burst", request_rate_rps=None), facts)
    try:
        setup = resolve(RunRecord(run_id=point.key, source="collect", gpu=gpu, power_mode=power_mode, **how))
    except Unsupported as error:
        raise UserError(str(error)) from None
    longest = max(point.most_tok, room(setup.model, setup.settings) or 0)
    return Server(setup, StepTable(step_model(setup, calibration_for(setup)), longest))


def expect_open(
    points: Sequence[Point], facts: EngineFacts, gpu: str, power_mode: str | None, traffic: TrafficOf,
    left_out: Sequence[str] = (),
) -> Expected:  # fmt: skip
    """Durations of open loops; they tell of no parameter. UserError when none of them can be predicted."""
    kept, seconds, warm_s, refused = [], [], [], []
    for point in points:
        try:
            server = server_of(point, facts, gpu, power_mode)
            seconds.append(server.seconds(traffic(point)))
        except UserError as error:
            refused.append(f"{point.key}: {error}")
            continue
        kept.append(point)
        first = replace(
            point, load="burst", request_rate_rps=None, num_requests=min(point.num_requests, WARM_UP_REQUESTS)
        )
        warm_s.append(server.seconds(traffic(first)))
    if not kept:
        raise UserError(f"none of {len(points)} points can be planned: {refused[0]}")
    return Expected(
        points=tuple(kept),
        seconds=np.array(seconds),
        rows=(np.zeros((0, 0)),) * len(kept),
        names=(),
        prior_log_sd=np.zeros(0),
        refused=(*left_out, *refused),
        warm_up_s=np.array(warm_s),
    )


def chosen_rates(
    lengths: Sequence[Point], facts: EngineFacts, gpu: str, power_mode: str | None, *, budget_s: float, repeats: int,
    num_requests: int | None = None,
) -> list[Point]:  # fmt: skip
    """Points at `SHARES` of the capacity for each of `lengths`, all of about the same duration, within `budget_s`.

    A rate so low that too few requests come in its time is left out. UserError when none is left.
    """
    each_s = SPARE * budget_s / (len(SHARES) * len(lengths) + repeats - 1)
    points, needed_s = [], math.inf
    for point in lengths:
        capacity = server_of(point, facts, gpu, power_mode).capacity_rps(point)
        for share in SHARES:
            rate = float(f"{share * capacity:.3g}")
            count = min(MOST, math.floor(rate * each_s)) if num_requests is None else num_requests
            fewest = FEWEST_CHOSEN if num_requests is None else num_requests
            needed_s = min(needed_s, fewest / rate)
            if count >= fewest and count / rate <= each_s:
                points.append(replace(point, request_rate_rps=rate, num_requests=count))
    if not points:
        least = needed_s * budget_s / each_s / 60.0
        raise UserError(
            f"--minutes {budget_s / 60.0:g} is too short for an open loop of these lengths, "
            f"expected at least {least:.1f}"
        )
    return points
