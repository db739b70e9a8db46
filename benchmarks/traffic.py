"""How fast traffic is simulated: python benchmarks/traffic.py [--requests 10000 100000 1000000]

Llama-2-7B on an A100 80 GB, Poisson arrivals at 80 % of saturation, 1,024 prompt and 256 output tokens, percentiles of
all latencies computed. Every size runs in a process of its own, on one core, so that its memory can be told. Beside it
stands what the same machine needs for SimPy's smallest event, and for the same traffic token by token. The last lines
are a million requests of a production trace.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial

import numpy as np

PROMPT_TOK, OUTPUT_TOK, LOAD = 1024, 256, 0.8


def deployment(gpu: str, model: str, step_by_step: bool = False):
    """What serves, and how long it takes to prepare."""
    from simulator.traffic.scenario import TrafficScenario, prepare_traffic
    from simulator.workload.traffic import Traffic

    nothing = Traffic(np.array([1]), np.array([1]), np.zeros(1))
    scenario = TrafficScenario(gpu=gpu, model=model, traffic=nothing, step_by_step=step_by_step)
    return prepare_traffic(scenario).deployment


def saturation_rps(chosen) -> float:
    """Requests per second of a server that is never idle."""
    from simulator.traffic.cluster import serve
    from simulator.workload.loads import burst

    served = serve(burst(2000, PROMPT_TOK, OUTPUT_TOK, np.random.default_rng(0)), chosen)
    return 2000 / served.end_s


def timed(traffic, chosen) -> dict[str, float]:
    """Seconds and bytes per request of serving `traffic`, percentiles included."""
    from simulator.traffic.cluster import serve
    from simulator.traffic.metrics import traffic_metrics

    before_byte = _peak_byte()
    start = time.perf_counter()
    served = serve(traffic, chosen)
    served_s = time.perf_counter() - start
    metrics = traffic_metrics(served)
    seconds = time.perf_counter() - start
    n = len(traffic)
    return {
        "requests": n, "seconds": seconds, "requests_per_s": n / seconds, "of_it_metrics_s": seconds - served_s,
        "byte_per_request": (_peak_byte() - before_byte) / n, "stretches_per_request": len(served.steps) / n,
        "ttft_s_p99": metrics["ttft_s_p99"], "tpot_s_p50": metrics["tpot_s_p50"],
    }  # fmt: skip


def _peak_byte() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def poisson_run(n: int, step_by_step: bool = False) -> dict[str, float]:
    """`n` requests at 80 % of saturation; the tables of step costs are warm, as they are after the first seconds."""
    from simulator.traffic.cluster import serve
    from simulator.workload.loads import open_loop

    chosen = deployment("a100", "llama-2-7b", step_by_step)
    rate = LOAD * saturation_rps(deployment("a100", "llama-2-7b"))
    make = partial(open_loop, rate, prompt=PROMPT_TOK, output=OUTPUT_TOK)
    serve(make(2000, rng=np.random.default_rng(1)), chosen)
    return timed(make(n, rng=np.random.default_rng(2)), chosen) | {"rate_rps": rate}


def trace_run(n: int) -> dict[str, float]:
    """`n` requests of the Azure 2023 conversation trace, repeated, on one H100; reading the trace included."""
    from simulator.workload.trace_files import read_trace

    chosen = deployment("h100", "llama-3.1-8b")
    start = time.perf_counter()
    traffic = read_trace("azure-2023-conv", np.random.default_rng(0), requests=n, repeat=True, rate_per_s=10.0)
    read_s = time.perf_counter() - start
    found = timed(traffic, chosen)
    return found | {"seconds": found["seconds"] + read_s, "requests_per_s": n / (found["seconds"] + read_s)}


def simpy_events(n: int) -> dict[str, float]:
    """`n` times one process waits for one timeout."""
    import simpy

    def process(env):
        for _ in range(n):
            yield env.timeout(1.0)

    env = simpy.Environment()
    start = time.perf_counter()
    env.run(env.process(process(env)))
    return {"seconds": time.perf_counter() - start}


KINDS = {"poisson": poisson_run, "token by token": partial(poisson_run, step_by_step=True), "trace": trace_run,
         "simpy": simpy_events}  # fmt: skip


def fresh(kind: str, n: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--only", kind, "--requests", str(n)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", choices=KINDS, help="one measurement of the first size, as JSON")
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(KINDS[asked.only](asked.requests[0])))
        return
    event_us = 1e6 * fresh("simpy", 1_000_000)["seconds"] / 1e6
    print(f"one SimPy timeout: {event_us:.2f} us\n")
    print(f"{'':<16} {'requests':>9} {'seconds':>8} {'requests/s':>10} {'us/request':>10} {'SimPy timeouts':>14} "
          f"{'B/request':>9} {'TTFT p99':>9} {'TPOT p50':>9}")  # fmt: skip
    for kind, n in [*(("poisson", n) for n in asked.requests), ("token by token", 2000), ("trace", asked.requests[-1])]:
        found = fresh(kind, n)
        each_us = 1e6 * found["seconds"] / n
        print(f"{kind:<16} {n:>9,} {found['seconds']:>8.2f} {found['requests_per_s']:>10,.0f} {each_us:>10.1f} "
              f"{each_us / event_us:>14.1f} {found['byte_per_request']:>9,.0f} {1e3 * found['ttft_s_p99']:>6,.0f} ms "
              f"{1e3 * found['tpot_s_p50']:>6.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
