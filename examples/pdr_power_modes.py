"""Parallel-distill-refine in every power mode of every Jetson: time, power and energy of an answer.

    python examples/pdr_power_modes.py [FIGURE.png]

A slower mode draws less power for longer: which of the two wins decides the energy of an answer.
"""

import sys

from simulator.device import list_devices
from simulator.planning.points import answer
from simulator.report.gantt import PALETTE, save_figure

shared = {"strategy": "pdr", "width": 4, "model": "r1-distill-qwen-1.5b", "weights": "int4"}
jetsons = [device for device in list_devices() if device.power_modes]

print(
    f"{'Jetson':26} {'mode':>9} {'wall p50':>9} {'90 % interval':>15} {'power':>7} {'energy':>8} {'90 % interval':>15}"
)
rows = []
for device in jetsons:
    for mode in (each.name for each in device.power_modes):
        point = answer({**shared, "gpu": device.id, "power_mode": mode}, keep_going=True)
        if not point.ok:
            print(f"{device.id:26} {mode:>9} {point.reason}")
            continue
        found, ends = point.figures, point.intervals
        wall_s, energy_j = (f"{low:.0f} - {high:.0f}" for low, high in (ends["wall_s_p50"], ends["energy_j_p50"]))
        rows.append((device.id, mode, found["wall_s_p50"], found["energy_j_p50"]))
        print(
            f"{device.id:26} {mode:>9} {found['wall_s_p50']:>7.0f} s {wall_s:>13} s {found['mean_power_w']:>5.1f} W "
            f"{found['energy_j_p50']:>6.0f} J {energy_j:>13} J"
        )


def draw(figure):
    """Energy of an answer over its time: one line per Jetson, one mark per mode."""
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(row[0] for row in rows)):
        _, modes, wall_s, energy_j = zip(*sorted((row for row in rows if row[0] == name), key=lambda row: row[2]))
        axes.plot(wall_s, energy_j, "o-", color=PALETTE[i % len(PALETTE)], label=name)
        for mode, x, y in zip(modes, wall_s, energy_j):
            axes.annotate(mode, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="time of an answer, p50 [s]", ylabel="energy of an answer, p50 [J]", xlim=(0.0, None))
    axes.grid(color="#DDDDDD", linewidth=0.5)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


if len(sys.argv) > 1:
    save_figure(sys.argv[1], (10.0, 7.0), draw)
