"""One fit over all GPUs of an engine family: overheads that they share, kernel efficiencies of each.

Parameters are addressed by dotted names; those of kernels and power carry the GPU in front ("h100-sxm/gemm16.…").
Every one has a prior: the composed calibration of its GPU (operator tables and what is known of the engine).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from calibration.fleet import Fleet
from calibration.least_squares import Solution, fit_parameters
from calibration.points import Point
from calibration.setup import Setup
from simulator.kernels.spec import ParameterSpec
from simulator.parameters import MOE_GROUPS, SPECS, flatten, with_values
from simulator.profile import Calibration
from simulator.profile_choice import at_device
from simulator.profile_parts import profiles_directory

# What serving runs may move. Kernel parameters not named here stay as the operator tables have them: runs cannot tell
# them from their neighbours.
FREE: dict[str, tuple[str, ...]] = {
    "gemm16": ("compute_fraction", "memory_fraction"),
    "gemm8": ("compute_fraction", "memory_fraction"),
    "gemm_weight_only": ("compute_fraction", "memory_fraction", "start_s", "inner_latency_s"),
    "prefill": ("matrix_fraction",),
    "decode": ("bandwidth_fraction",),
    **dict.fromkeys(MOE_GROUPS, ("matrix_fraction", "bandwidth_fraction", "start_s")),
    "collective": ("start_s",),
}
# Where a GPU has no operator table, runs must say more about its kernels.
FREE_WITHOUT_TABLE: dict[str, tuple[str, ...]] = {
    "gemm16": ("start_s", "inner_latency_s", "inner_overhead", "wave_share", "roof_exponent", "swizzle_columns"),
    "decode": ("start_s",),
}
FREE_ENGINE = (
    "small_kernel_s", "eager_launch_s", "step_host_s", "sequence_host_s", "prefill_host_s", "request_s", "prompt_tok_s",
    "sampler_start_s", "sampler_passes", "routing_skew",
)  # fmt: skip
FREE_POWER = ("busy_w", "byte_j", "flop_j")
# Where a GPU has operator tables of its own, its kernels in a running engine differ from them by this much (versions
# of the kernels, clocks under load): the drift between versions of one table is 10 to 25 % between extremes.
IN_SITU_LOG_SD = {"gemm16": 0.08, "gemm8": 0.08, "collective": 0.15, "prefill": 0.12, "decode": 0.12}
_WITHOUT_TABLE = ("power.", "gemm_weight_only.")
# Launches pace some steps and not others, so the sum of squares has kinks that a tighter search would follow for long.
TOLERANCE = 1e-5
EXPERTS_START_LOG_SD = 0.1  # top-k, sorting and combining: engines fuse these small kernels each in its own way
EXPERTS_IN_SITU_LOG_SD = 0.03  # the tables hold the same kernels; what differs is routing, which has a parameter


@dataclass(frozen=True)
class JointFit:
    """Fitted values by name, and the calibrations that follow from them."""

    priors: dict[str, Calibration]  # by GPU id, in its default power mode
    solution: Solution

    def calibration(self, setup: Setup) -> Calibration:
        """The calibration of a run's GPU, brought to its power mode."""
        return _at(self.priors, self.solution.values, setup)

    def of_gpu(self, gpu: str) -> Calibration:
        """The calibration of a GPU in its default power mode."""
        return with_fitted(self.priors[gpu], gpu, self.solution.values)


def with_fitted(prior: Calibration, gpu: str, values: Mapping[str, float]) -> Calibration:
    """`prior` with the values that belong to `gpu` or to all."""
    own = {}
    for name, value in values.items():
        where, _, dotted = name.rpartition("/")
        if where in ("", gpu):
            own[dotted] = value
    return msgspec.structs.replace(prior, parameters=with_values(prior.parameters, own))


def _at(priors: Mapping[str, Calibration], values: Mapping[str, float], setup: Setup) -> Calibration:
    gpu = setup.device.id
    found = with_fitted(priors[gpu], gpu, values)
    if setup.device.power_mode and setup.device.power_mode != setup.device.default_power_mode:
        found = at_device(msgspec.structs.replace(found, gpu=gpu), setup.device)
    return found


def free_names(fleet: Fleet, priors: Mapping[str, Calibration], measured: Iterable[str]) -> list[str]:
    """Names of the time parameters that the runs of a fleet exercise; `priors` by GPU id."""
    kinds = set(measured)
    used = fleet.used_groups()
    engine = [name for name in FREE_ENGINE if _exercised(name, fleet, kinds)]
    names = [f"engine.{name}" for name in engine]
    for gpu in sorted(priors):
        own = fleet.used_groups(gpu)
        groups = [group for group in FREE if group in used & own]
        names += [f"{gpu}/{group}.{name}" for group in groups for name in FREE[group]]
        if not has_tables(gpu, priors[gpu]):
            skinny = priors[gpu].parameters.gemm16.skinny_rows > 0.0
            more = [f"{gpu}/{group}.{name}" for group in groups for name in FREE_WITHOUT_TABLE.get(group, ())]
            names += [*more, *([f"{gpu}/gemm16.skinny_vector_fraction"] if skinny else [])]
    return names


def _exercised(name: str, fleet: Fleet, kinds: set[str]) -> bool:
    """Whether the rows can say anything about an engine parameter at all."""
    setups = fleet.setups
    if name.startswith("sampler"):
        return any(setup.sampler == "full" for setup in setups)
    if name == "routing_skew":
        return any(setup.model.sparse for setup in setups)
    if name == "prefill_host_s":
        return any(setup.batch > 1 for setup in setups) or any(kind.startswith(("ttft", "e2e")) for kind in kinds)
    if name in ("request_s", "prompt_tok_s"):
        return any(kind.startswith(("ttft", "e2e")) for kind in kinds)
    if name == "sequence_host_s":
        return any(setup.batch > 1 for setup in setups)
    return True


def has_tables(gpu: str, prior: Calibration | None = None) -> bool:
    """Whether the GPU's kernels are known from operator tables: shipped ones, or those that its prior is fitted on.

    By its id, which a data sheet of the user's own need not share with any that ships.
    """
    own = prior is not None and prior.gpu == gpu and any(name.startswith("gemm16.") for name in prior.fitted)
    return own or (profiles_directory() / "kernels" / f"{gpu}.toml").exists()


def specs_of(names: Sequence[str], priors: Mapping[str, Calibration]) -> dict[str, ParameterSpec]:
    """Specifications by name; kernels with tables of their own get the spread of kernels in a running engine."""
    out = {}
    for name in names:
        gpu, _, dotted = name.rpartition("/")
        spec = SPECS[dotted]
        if gpu and not dotted.startswith(_WITHOUT_TABLE) and has_tables(gpu, priors[gpu]):
            group, _, parameter = dotted.partition(".")
            in_situ = IN_SITU_LOG_SD.get(group, EXPERTS_IN_SITU_LOG_SD)
            if group in MOE_GROUPS and parameter == "start_s":
                in_situ = EXPERTS_START_LOG_SD
            spec = msgspec.structs.replace(spec, log_sd=min(spec.log_sd, in_situ))
        out[name] = spec
    return out


def start_of(names: Sequence[str], priors: Mapping[str, Calibration]) -> dict[str, float]:
    """Prior medians by name."""
    any_gpu = next(iter(priors))
    flat = {gpu: flatten(prior.parameters) for gpu, prior in priors.items()}
    return {name: flat[name.rpartition("/")[0] or any_gpu][name.rpartition("/")[2]] for name in names}


class Problem:
    """Residuals of a fleet's points as a function of named parameters."""

    def __init__(
        self,
        fleet: Fleet,
        points: Sequence[Point],
        priors: Mapping[str, Calibration],
        measured: np.ndarray | None = None,
    ) -> None:
        self.fleet, self.points, self.priors = fleet, list(points), dict(priors)
        place = {setup.record.run_id: index for index, setup in enumerate(fleet.setups)}
        self._places = [place[point.setup.record.run_id] for point in self.points]
        self._measured = np.array([p.measured for p in points]) if measured is None else np.asarray(measured, float)
        self.sd = np.array([point.sd for point in self.points])

    def predict(self, values: Mapping[str, float]) -> np.ndarray:
        """The metric of every point."""
        runs = self.runs(values)
        return np.array([runs[place][point.metric] for place, point in zip(self._places, self.points)])

    def runs(self, values: Mapping[str, float]) -> list[Mapping[str, float]]:
        """All metrics of every run of the fleet."""
        chosen: dict[tuple, Calibration] = {}

        def calibration(setup: Setup) -> Calibration:
            key = (setup.device.id, setup.device.power_mode)
            if key not in chosen:
                chosen[key] = _at(self.priors, values, setup)
            return chosen[key]

        return self.fleet.predict(calibration)

    def errors(self, values: Mapping[str, float]) -> np.ndarray:
        """log(predicted / measured) of every point."""
        return np.log(self.predict(values) / self._measured)

    def solve(
        self,
        names: Sequence[str],
        kept: np.ndarray | None = None,
        fixed: Mapping[str, float] | None = None,
        begin: Mapping[str, float] | None = None,
        progress: Callable[[int, None], None] | None = None,
        max_evaluations: int = 30,
    ) -> JointFit:
        """Fit the parameters `names` on the points where `kept` is true (default: all).

        fixed: values of parameters that are not fitted now. begin: where the search starts (default: the priors).
        """
        mask = np.ones(len(self.points), dtype=bool) if kept is None else kept
        fixed = dict(fixed or {})

        def residuals(values: dict[str, float]) -> np.ndarray:
            return self.errors({**fixed, **values})[mask] / self.sd[mask]

        solution = fit_parameters(
            start_of(names, self.priors), specs_of(names, self.priors), residuals, progress, max_evaluations, begin,
            TOLERANCE,
        )  # fmt: skip
        return JointFit(self.priors, replace(solution, values={**fixed, **solution.values}))
