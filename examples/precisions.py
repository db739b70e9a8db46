"""Which precision is fastest for one user, and which for a full server? Llama-3.1-8B on an L40S.

    python examples/precisions.py [FIGURE.png]

A decode step of one sequence reads every weight, so that 4-bit weights are fastest. A full server computes, and 4-bit
weights are computed in 16 bit (W4A16), so that arithmetic in 8 bit (W8A8) wins: they are for different uses.
"""

import sys

from simulator.planning.store import Store
from simulator.planning.sweep import build_sweep, run_sweep
from simulator.planning.vary import parse_vary
from simulator.report.sweep_plot import choose_axes, save_sweep_figure

SCHEMES = {"bf16": "bf16", "w8a8-fp": "W8A8 in fp8", "w4a16": "W4A16"}

fixed = {"gpu": "l40s", "model": "llama-3.1-8b", "input": 512, "output": 256, "requests": 512}
axes = {"scheme": list(SCHEMES), **dict([parse_vary("concurrency=1..256*4")])}
sweep = build_sweep("traffic", fixed, axes)
with Store(None, sweep.columns, sweep.names) as store:
    rows, _ = run_sweep(sweep, store, jobs=1)
table = {(row["scheme"], row["concurrency"]): row for row in rows}

print(f"{'users':>5}  {'precision':12} {'time per token':>14} {'90 % interval':>18} {'tokens/s':>9} {'USD/Mtok':>9}")
for users in dict.fromkeys(row["concurrency"] for row in rows):
    for scheme, name in SCHEMES.items():
        row = table[scheme, users]
        low, middle, high = (1e3 * float(row[f"tpot_s_p50{end}"]) for end in ("_lo", "", "_hi"))
        rate, usd = (float(row[name]) for name in ("output_tok_per_s", "usd_per_million_output_tok"))
        print(f"{users:>5}  {name:12} {middle:>11.1f} ms {low:>7.1f} - {high:>5.1f} ms {rate:>9,.0f} {usd:>9.3f}")

for users, figure, use in (("1", "tpot_s_p50", "one user"), ("256", "output_tok_per_s", "256 users")):
    ratio = {scheme: float(table[scheme, users][figure]) / float(table["bf16", users][figure]) for scheme in SCHEMES}
    gains = {scheme: 1.0 / x if figure.startswith("tpot") else x for scheme, x in ratio.items()}
    told = ", ".join(f"{SCHEMES[scheme]} {gain:.2f} times" for scheme, gain in gains.items() if scheme != "bf16")
    print(f"against bf16, {use}: {told} as fast")

if len(sys.argv) > 1:
    y = ("tpot_s_p50", "output_tok_per_s")
    save_sweep_figure(rows, sweep, choose_axes(sweep, "concurrency", y, "scheme"), sys.argv[1])
