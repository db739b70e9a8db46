"""Sensitivities: the same run again, one thing changed, the same seeds; and what else than hardware can be changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simulator.device import Device
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.planning.explain.explanation import Sensitivity
from simulator.planning.explain.faster import FASTER, HARDWARE, LIMIT, Hardware, capped
from simulator.precision import KV_BYTE, WEIGHT_BYTE, Precision

FEWER = 0.9  # tokens
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """A change, and the figures of the run with it. `run` raises UserError where that cannot be simulated."""

    name: str
    title: str
    kind: str
    run: Callable[[], Figures]


def tried(
    trials: list[Trial], present: Figures, names: tuple[str, ...], progress: Callable[[int, int], None] | None
) -> tuple[Sensitivity, ...]:
    """Every trial against the present run; largest gain in the first of `names` first, failed ones last."""
    found = []
    for done, trial in enumerate(trials):
        found.append(_tried(trial, present, names))
        if progress is not None:
            progress(done + 1, len(trials))
    return tuple(sorted(found, key=lambda each: (bool(each.reason), each.changes.get(names[0], math.inf))))


def _tried(trial: Trial, present: Figures, names: tuple[str, ...]) -> Sensitivity:
    try:
        figures = trial.run()
    except UserError as error:
        return Sensitivity(trial.name, trial.title, trial.kind, reason=" ".join(str(error).split()))
    changes = {name: _change(figures[name], present[name]) for name in names}
    elasticity = None
    if trial.kind == "hardware":
        elasticity = math.log1p(changes[names[0]]) / math.log(FASTER)
    return Sensitivity(trial.name, trial.title, trial.kind, changes, elasticity)


def _change(new: float, old: float) -> float:
    """new / old - 1; 0 for equal ones, NaN where there is nothing to compare."""
    if new == old:
        return 0.0
    return new / old - 1.0 if old else math.nan


def hardware_trials(device: Device, run: Callable[[Hardware], Figures]) -> list[Trial]:
    """One trial per change of hardware; the power limit only where one is set."""
    wanted = [each for each in HARDWARE if LIMIT not in each.of or capped(device)]
    return [Trial(each.name, each.title, "hardware", lambda each=each: run(each)) for each in wanted]


def more_seats(settings: EngineSettings) -> dict[str, int]:
    """Engine settings with a batch limit of FASTER times as many sequences, at least one more."""
    seats = max(settings.max_num_seqs + 1, round(FASTER * settings.max_num_seqs))
    tokens = max(settings.max_num_batched_tokens, seats)
    return {"max_num_seqs": seats, "max_num_batched_tokens": tokens}


def seats_title(settings: EngineSettings) -> str:
    """'max_num_seqs 256 -> 282'."""
    return f"batch limit +10 % (max_num_seqs {settings.max_num_seqs} to {more_seats(settings)['max_num_seqs']})"


def lower_precisions(device: Device, precision: Precision) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, title, what to ask for) of formats narrower than the present ones: weights of 8 and 4 bits, KV of 8."""
    found = []
    narrow = "fp8" if "fp8" in device.compute.peak_flop_per_s else "int8"
    for weights in (narrow, "int4"):
        if WEIGHT_BYTE[weights] < WEIGHT_BYTE[precision.weights]:
            found.append((f"weights_{weights}", f"weights in {weights}", {"weights": weights, "activations": None}))
    if KV_BYTE["fp8"] < precision.kv_byte:
        found.append(("kv_fp8", "KV cache in fp8", {"kv_cache": "fp8"}))
    return found
