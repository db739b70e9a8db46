"""What an answer costs on an H100, an L40S and a Jetson AGX Orin: one question alone, and a server full of questions.

    python examples/cost_per_answer.py [FIGURE.png]

H100 and L40S are rented by the hour, the Orin is bought and written off over three years. Alone a question pays for a
GPU that is mostly idle; sixteen at a time share it.
"""

import sys

from simulator.planning.compare import compare
from simulator.planning.study import build_study
from simulator.report.compare_plot import save_comparison
from simulator.report.compare_table import ratio_text

GPUS = {"H100": "h100", "L40S": "l40s", "Orin": "orin"}
shared = {"model": "qwen3-4b", "strategy": "self_consistency", "samples": 8, "repetitions": 5}

print(
    f"{'questions':>9}  {'GPU':4} {'cost of an answer':>18} {'90 % interval':>21} {'energy':>9}  cost against the H100"
)
for questions in (1, 16):
    own = [{"name": name, "gpu": gpu, "questions": questions} for name, gpu in GPUS.items()]
    comparison = compare(build_study(shared, own))
    against = {each.candidate: each for each in comparison.differences if each.figure == "cost_usd_p50"}
    for entry in comparison.flown:
        figures, (low, high) = entry.outcome.figures, entry.outcome.intervals["cost_usd_p50"]
        cents = 100.0 * figures["cost_usd_p50"] / questions
        interval = f"{100.0 * low / questions:.3f} - {100.0 * high / questions:.3f} ct"
        ratio = ratio_text(against[entry.name]) if entry.name in against else "-"
        energy_j = figures["energy_j_p50"] / questions
        print(f"{questions:>9}  {entry.name:4} {cents:>15.3f} ct {interval:>21} {energy_j:>7,.0f} J  {ratio}")

if len(sys.argv) > 1:
    save_comparison(comparison, sys.argv[1])
