"""Parallel-distill-refine, self-consistency and one chain of thought on a Jetson AGX Orin under 30 W.

    python examples/pdr_against_self_consistency.py [FIGURE.png]

Time, energy and memory follow from the hardware. Accuracy does not: that of votes follows from how many samples are
correct (here assumed: spread over questions as Beta(3, 2)); of parallel-distill-refine nothing follows, so none is
shown.
"""

import sys

from simulator.planning.compare import compare
from simulator.planning.study import build_study
from simulator.report.compare_plot import save_comparison
from simulator.report.compare_table import render_comparison

shared = {
    "gpu": "orin",
    "power_mode": "30W",
    "model": "r1-distill-qwen-1.5b",
    "success": "beta:3:2",
    "wrong_answers": 4,
}
candidates = [
    {"name": "chain of thought", "strategy": "single"},
    {"name": "8 votes", "strategy": "self_consistency", "samples": 8},
    {"name": "32 votes", "strategy": "self_consistency", "samples": 32},
    {"name": "PDR, 4 drafts", "strategy": "pdr", "width": 4},
    {"name": "PDR, 8 drafts", "strategy": "pdr", "width": 8},
]
study = build_study(shared, candidates, within=[("wall_s", 240), ("energy_j", 4000)])
comparison = compare(study)

print(render_comparison(comparison), end="")
if len(sys.argv) > 1:
    save_comparison(comparison, sys.argv[1])
