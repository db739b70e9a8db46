"""How fast a plan is found: python benchmarks/plan.py [--jobs 2] [--rate 40]

Llama-3.1-8B, Poisson arrivals, TTFT p99 2 s and TPOT p99 50 ms, eight GPU types x TP x replicas x precision x engine
settings; finalists are confirmed by discrete-event simulation, with head-room and probability. Processor time stands
beside wall time, because machines are shared. Then the share of it without finalists' margins, and what was simulated.
"""

from __future__ import annotations

import argparse
import os
import time

from simulator.cli.plan_options import DEFAULT_GPUS
from simulator.planning.capacity.candidates import Space
from simulator.planning.capacity.lab import Lab
from simulator.planning.capacity.limits import parse_limits
from simulator.planning.capacity.plan import make_plan
from simulator.planning.capacity.search import search
from simulator.planning.capacity.workload import open_workload
from simulator.workload.arrivals import Poisson

LIMITS = parse_limits(["ttft_p99=2s", "tpot_p99=50ms"])


def space() -> Space:
    """12,288 candidates."""
    return Space(
        model="llama-3.1-8b", gpus=DEFAULT_GPUS, weights=("bf16", "fp8"), max_num_seqs=(64, 256, 1024),
        max_num_batched_tokens=(2048, 8192), replicas=tuple(range(1, 33)),
    )  # fmt: skip


def timed(work):
    """(result, wall seconds, processor seconds of this process and its children)."""
    wall, before = time.perf_counter(), os.times()
    result = work()
    after = os.times()
    return result, time.perf_counter() - wall, sum(after[:4]) - sum(before[:4])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=40.0)
    asked = parser.parse_args()
    workload = open_workload(Poisson(asked.rate), "lognormal:800:0.8", "lognormal:250:0.7")
    plan, wall_s, _ = timed(lambda: make_plan(space(), workload, LIMITS, asked.jobs))
    print(f"{plan.candidates:,} candidates, {plan.simulations} simulations of 2,000 to 8,000 requests, "
          f"{len(plan.options)} finalists with margins")  # fmt: skip
    print(f"  {asked.jobs} process(es): {wall_s:.1f} s wall")
    _, wall_s, cpu_s = timed(lambda: make_plan(space(), workload, LIMITS))
    print(f"  one process: {wall_s:.1f} s wall, {cpu_s:.1f} s of processor")
    _, wall_s, cpu_s = timed(lambda: search(Lab(space(), workload, LIMITS)))
    print(f"  of it the search: {wall_s:.1f} s wall, {cpu_s:.1f} s of processor")
    print(f"  load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    best = plan.best
    print(f"best: {best.replicas} x ({best.variant.hardware.phrase()}; {best.variant.engine.phrase()}) at "
          f"${best.usd_per_h:.2f}/h, bears x {best.margin.head_room:.2f}")  # fmt: skip
    print(f"candidates: {', '.join(f'{number:,} {reason}' for reason, number in plan.reasons.items())}")


if __name__ == "__main__":
    main()
