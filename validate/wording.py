"""Figures in sentences, with the unit that fits their size."""

from __future__ import annotations

from simulator.workload.traffic import counted

__all__ = ["counted", "figure"]

_UNITS = (
    ("energy_j_per_output_tok", "J/token"), ("tok_per_s", "tokens/s"), ("power_w", "W"), ("kv_capacity_tok", "tokens"),
    ("batch_mean", "sequences"),
)  # fmt: skip


def figure(metric: str, value: float) -> str:
    """A value of a column of the schema: "43.97 ms", "1.2 s", "12,740 tokens/s", "5.714 W"."""
    if "_s_" in metric or metric == "duration_s":
        return f"{1e3 * value:.4g} ms" if abs(value) < 1.0 else f"{_digits(value)} s"
    unit = next((unit for name, unit in _UNITS if metric.endswith(name)), "")
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    """Four significant digits, thousands apart and never as a power of ten unless it is tiny."""
    return f"{float(f'{value:.4g}'):,.10g}"
