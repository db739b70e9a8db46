"""What a strategy does on one candidate, and the answer made of many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from simulator.device import load_device
from simulator.model import load_model
from simulator.planning.capacity.limits import Limit, ratios
from simulator.planning.capacity.margins import energy_chance
from simulator.planning.capacity.serve_command import ServeCommand
from simulator.result import SimulationResult, plain

OBJECTIVES = ("accuracy", "compute", "tokens", "energy", "time", "cost")
NO_FIT = "does not fit or cannot run so"
# What an objective is, and whether more of it is better.
MEANING = {
    "accuracy": ("the accuracy that was given", True),
    "compute": ("compute behind an answer, active parameters x tokens read and written: not accuracy", True),
    "tokens": ("tokens written for an answer: not accuracy", True),
    "energy": ("energy per answer", False),
    "time": ("median wall time", False),
    "cost": ("cost per answer", False),
}
MOST_SHOWN = 8


@dataclass(frozen=True)
class FlightOption:
    """One combination and what it does. settings: as they would be typed, without dashes."""

    settings: Mapping[str, Any]
    figures: Mapping[str, float]
    ratios: Mapping[str, float]
    probability: float
    score: float  # by the objective
    calibration: Mapping[str, Any]
    command: ServeCommand
    replicas: int = 1
    in_flight: int = 1  # questions at once on each
    usd_per_h: float = math.nan
    why_lost: str = ""

    @property
    def met(self) -> bool:
        """Whether every limit is met."""
        return all(ratio <= 1.0 for ratio in self.ratios.values())

    @property
    def binding(self) -> str | None:
        """The limit that it is closest to."""
        return max(self.ratios, key=self.ratios.__getitem__) if self.ratios else None


@dataclass(frozen=True)
class FlightPlan:
    """The answer: options within the limits, the best first; empty where there is none."""

    strategy: str
    served: bool
    objective: str
    limits: tuple[Limit, ...]
    options: tuple[FlightOption, ...]
    candidates: int
    flights: int
    reasons: Mapping[str, int]
    relaxations: tuple[str, ...]
    does_not_fit: tuple[str, ...]
    assumptions: tuple[str, ...]
    seed: int
    version: str
    missed: tuple[FlightOption, ...] = ()  # those outside the limits, the nearest first

    @property
    def best(self) -> FlightOption | None:
        """The first; None where nothing does."""
        return self.options[0] if self.options else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        own["limits"] = [vars(limit) for limit in self.limits]
        for name in ("options", "missed"):
            own[name] = [{**vars(option), "command": vars(option.command)} for option in own[name]]
        return plain({"feasible": self.best is not None, **own})


def flight_figures(result: SimulationResult) -> dict[str, float]:
    """Figures of flights of one question: quantiles and means over repetitions; power is that of the highest moment.

    Where the calibration's power is only that of some rails, power is what the power mode lets the whole module take: a
    supply feeds all of it.
    """
    summary, wall, energy = result.summary(), result.values("wall_s"), result.values("energy_j")
    tokens = float(np.mean(result.values("computed_tok") + result.values("written_tok")))
    highest_w = max(float(flight.power_w.max(initial=0.0)) for flight in result.flights)
    return {
        **{f"wall_s_p{q}": float(np.percentile(wall, q)) for q in (50, 90, 99)},
        "wall_s_mean": float(wall.mean()),
        "energy_j_mean": float(energy.mean()),
        "power_w": highest_w if result.calibration["power_scope"] == "board" else result.power["limit_w"],
        "mean_power_w": summary["mean_power_w"],
        "written_tok": float(result.values("written_tok").mean()),
        "compute_flop": 2.0 * load_model(result.model).active_parameters(embedding=False) * tokens,
        "cost_usd": summary["cost_usd_p50"],
        "peak_memory_byte": summary["peak_memory_byte"],
    }


def flight_option(
    settings: Mapping[str, Any],
    figures: dict[str, float],
    result: SimulationResult,
    limits: Sequence[Limit],
    command: ServeCommand,
    **more: Any,
) -> FlightOption:
    """An option with the probability that its limits are met under the calibration's error.

    Times of a flight scale with those of its steps, so of all limits on time the tightest decides: Phi(ln(limit /
    value) / sd). Energy and power have errors of their own, taken as independent.
    """
    found = ratios(limits, figures)
    timed = [found[limit.name] for limit in limits if limit.kind == "time"]
    spreads = result.interval_log_sd
    probability = float(ndtr(-math.log(max(timed)) / spreads["time"])) if timed and max(timed) > 0.0 else 1.0
    for limit in limits:
        if limit.kind == "power" and figures[limit.figure] <= limit.value and _enforced(settings, limit):
            continue  # the device holds its cap by itself
        probability *= energy_chance(limit, figures[limit.figure], spreads)
    return FlightOption(settings, figures, found, probability, math.nan, result.calibration, command, **more)


def _enforced(settings: Mapping[str, Any], limit: Limit) -> bool:
    """Whether the power mode itself keeps the device below a limit."""
    return load_device(settings["gpu"], settings["power_mode"]).power.limit_w <= limit.value


def _rounded(option: FlightOption, limit: Limit) -> float:
    """A limit that an option meets: a little wider than what it reached, but for power, whose modes are round."""
    return option.figures[limit.figure] * (1.0 if limit.kind == "power" else 1.02)


def nearest(limits: Sequence[Limit], missed: Sequence[FlightOption]) -> tuple[str, ...]:
    """Sentences: which wider limits would do, and with what; the least change first."""
    by_name = {limit.name: limit for limit in limits}
    best: dict[tuple[str, ...], FlightOption] = {}
    for option in missed:
        names = tuple(name for name, ratio in option.ratios.items() if ratio > 1.0)
        if names not in best or max(option.ratios.values()) < max(best[names].ratios.values()):
            best[names] = option
    sentences = []
    for names, option in sorted(best.items(), key=lambda item: max(item[1].ratios.values()))[:3]:
        wider = " and ".join(
            f"{by_name[name].text(_rounded(option, by_name[name]))} instead of "
            f"{by_name[name].text().partition(' = ')[2]}"
            for name in names
        )
        what = ", ".join(f"{name} {value}" for name, value in option.settings.items() if value not in (None, "auto"))
        sentences.append(f"{wider} would do with {what}")
    return tuple(sentences)
