"""How many requests per second can one GPU take before its users wait? TTFT, TPOT and goodput against the rate."""

import numpy as np

from simulator.traffic.metrics import Goodput, goodput_metrics
from simulator.traffic.scenario import TrafficScenario, simulate_traffic
from simulator.workload.loads import open_loop

LIMITS = Goodput(ttft_s=1.0, tpot_s=0.05)

print("requests/s   TTFT p50    TTFT p99   TPOT p50    goodput   power")
for rate in (1, 2, 4, 6, 8, 10, 12):
    # One seed: the same prompts and answers at every rate, only closer together.
    traffic = open_loop(rate, 1500, "lognormal:800:0.8", "lognormal:250:0.7", np.random.default_rng(0))
    result = simulate_traffic(TrafficScenario(gpu="l40s", model="llama-3.1-8b", weights="fp8", traffic=traffic))
    told, good = result.summary(), goodput_metrics(result.served, LIMITS)["good_requests_per_s"]
    latencies = f"{told['ttft_s_p50']:>6.2f} s   {told['ttft_s_p99']:>7.2f} s   {1e3 * told['tpot_s_p50']:>5.1f} ms"
    print(f"{rate:>10}   {latencies}   {good:>5.2f}/s   {told['mean_power_w']:>4.0f} W")
