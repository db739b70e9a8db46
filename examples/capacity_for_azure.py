"""How many GPUs for the Azure 2023 conversation trace? The cheapest servers within limits, and what slack costs.

python examples/capacity_for_azure.py [FIGURE.png]
"""

import sys

import numpy as np

from simulator.planning.capacity.candidates import Space
from simulator.planning.capacity.curves import load_curves
from simulator.planning.capacity.lab import Lab
from simulator.planning.capacity.limits import parse_limits
from simulator.planning.capacity.plan import make_plan
from simulator.planning.capacity.workload import trace_workload
from simulator.report.plan_plot import save_plan_plot
from simulator.workload.trace_files import read_trace

# Five minutes of the trace, eight times as fast.
traffic = read_trace("azure-2023-conv", np.random.default_rng(0), window_s=(0.0, 300.0), speed=8.0)
workload = trace_workload(traffic)
space = Space(
    model="llama-3.1-8b",
    gpus=("l4", "l40s", "a100-sxm-80gb", "h100-sxm"),
    tp=(1, 2),
    weights=("bf16", "fp8"),
    max_num_seqs=(256,),
    max_num_batched_tokens=(2048,),
    replicas=tuple(range(1, 41)),
)
print(f"{workload.title}: {workload.rate_per_s:.1f} requests per second, {len(space):,} candidates")
print("\nlimits                                deployment                           $/h  $/M out  bears  P(hold)")
for texts in (["ttft_p99=5s"], ["ttft_p99=1s", "tpot_p99=100ms"], ["ttft_p99=500ms", "tpot_p99=40ms"]):
    limits = parse_limits(texts)
    plan = make_plan(space, workload, limits, finalists=2)
    told = ", ".join(limit.text() for limit in limits)
    for option in plan.options:
        name = f"{option.replicas} x ({option.variant.hardware.phrase()})"
        print(
            f"{told:<36}  {name:<34} {option.usd_per_h:>5.2f}  {option.usd_per_million_output_tok:>7.3f}  "
            f"x {option.margin.head_room:.2f}  {option.chance.probability:>6.0%}"
        )
        told = ""
print(f"\nServe the last winner with\n  {plan.best.command.line}")

if len(sys.argv) > 1:
    save_plan_plot(plan, load_curves(Lab(space, workload, limits), plan.options, limits), sys.argv[1])
