"""What five strategies cost on a Jetson AGX Orin, from Python: python examples/strategies_on_orin.py"""

from simulator.scenario import Scenario, simulate_scenario

print(f"{'strategy':18} {'wall p50':>9} {'90 % interval':>16} {'energy':>9} {'tokens written':>15}")
for strategy in ("single", "self_consistency", "best_of_n", "pdr", "sr"):
    result = simulate_scenario(Scenario("orin", strategy, model="r1-distill-qwen-1.5b"))
    s = result.summary()
    interval = f"{s['wall_s_lo']:.0f} - {s['wall_s_hi']:.0f} s"
    energy, written = s["energy_j_p50"], s["written_tok_p50"]
    print(f"{strategy:18} {s['wall_s_p50']:7.0f} s {interval:>16} {energy:7.0f} J {written:15,.0f}")
