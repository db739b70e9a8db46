"""Builds `profiles/kernels/*.toml` from the measured operator tables: what the kernels of a GPU or a family reach.

Everything is refitted here, deterministically, from the tables that ship (`calibrate kernels` writes the result).
A GPU with tables gets its own fits. A family gets one set of parameters fitted on all its GPUs together. A group of
parameters without a table comes from the fit on all GPUs that have one. What no table tells is a judgement: each stands
in a function of its own (`_ampere_gddr`, `_jetson`, `_thor`, `power.rule_power`) and is named in the file's `source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np

from calibration.kernels import attention, collective, gemm, moe, tables
from calibration.kernels.power import power_of, rounded
from calibration.kernels.spreads import KINDS, RestsOn, time_spreads
from calibration.least_squares import Solution
from calibration.write import parameter_lines, toml_value
from simulator.device import load_device
from simulator.errors import unknown_name
from simulator.kernels.gemm import GemmParameters
from simulator.parameters import KERNEL_GROUPS, MOE_GROUPS
from simulator.profile_parts import Kernels

Groups = dict[str, dict[str, float]]
Progress = Callable[[int, int | None], None]

TABLES = "operator tables of NVIDIA AIConfigurator 0.12.0 (vLLM 0.24.0; A100: vLLM 0.14.0)"
GEMM_DTYPE = {"gemm16": "bf16", "gemm8": "fp8"}
# Groups that some GPU has a table of; a file leaves the others out (`simulator.profile_parts.compose` fills them).
TABLED_GROUPS = tuple(group for group in KERNEL_GROUPS if group != "gemm_weight_only")
# All-reduce tables exist for these beyond `tables.GPUS`; b300 joins its family.
_MORE_LINKS = {"blackwell": ("b300-sxm",)}


class Fit(NamedTuple):
    """One group fitted on the tables of `gpus` together: all its values, the prior medians, and how the fit went."""

    gpus: tuple[str, ...]
    values: dict[str, float]
    prior: dict[str, float]
    solution: Solution


# -- one group -----------------------------------------------------------------------------------------------------


def has_table(group: str, gpu: str) -> bool:
    """Whether `gpu` has a table that `group` can be fitted on."""
    if group == "collective":
        return True
    if group in MOE_GROUPS:
        return group in moe.classes(gpu)
    return group in TABLED_GROUPS and (group != "gemm8" or gpu != "a100-sxm-80gb")


@lru_cache(maxsize=512)
def fit_group(group: str, gpus: tuple[str, ...]) -> Fit:
    """One set of parameters for all `gpus`, each of which has a table of `group` and weighs the same."""
    if group in GEMM_DTYPE:
        return _fit_gemm(group, gpus)
    if group == "collective":
        parts = [(collective.load(gpu), load_device(gpu)) for gpu in gpus]
        start: Any = collective.CollectiveParameters()
        solution = collective.fit(parts, start=start)
        return _fit(gpus, collective.fitted(start, solution), start, solution)
    if group in MOE_GROUPS:
        solution = moe.fit_class(group, gpus)
        return _fit(gpus, moe.parameters(solution), moe.MoeParameters(), solution)
    solution = attention.fit_phase(group, gpus)
    start = getattr(attention.AttentionParameters(), group)
    return _fit(gpus, attention.parameters(group, solution), start, solution)


def _fit_gemm(group: str, gpus: tuple[str, ...]) -> Fit:
    devices = [load_device(gpu) for gpu in gpus]
    starts = [(gemm.start_8 if group == "gemm8" else gemm.start_16)(device) for device in devices]
    parts = [(gemm.load(gpu, GEMM_DTYPE[group]), device) for gpu, device in zip(gpus, devices)]
    solution = gemm.fit(parts, start=starts[0])
    # The library's row bucket belongs to the device; for a mixture of families the commoner, wider one stands.
    bucket_rows = max(start.bucket_rows for start in starts)
    fitted = msgspec.structs.replace(gemm.fitted(starts[0], solution), bucket_rows=bucket_rows)
    return _fit(gpus, fitted, starts[0], solution)


def _fit(gpus: tuple[str, ...], fitted: Any, start: Any, solution: Solution) -> Fit:
    return Fit(gpus, msgspec.structs.asdict(fitted), msgspec.structs.asdict(start), solution)


def errors_of(group: str, gpu: str, values: Mapping[str, float]) -> np.ndarray:
    """log(predicted / measured) of `gpu`'s rows under given values; without what the L2 served and eager launches."""
    if group in GEMM_DTYPE:
        device, rows = load_device(gpu), gemm.load(gpu, GEMM_DTYPE[group])
        own = {"bucket_rows": gemm.start_8(device).bucket_rows} if group == "gemm8" else {}
        found = gemm.in_sample(rows, device, GemmParameters(**{**values, **own}))
        return np.log1p(found.relative[found.counted])
    if group == "collective":
        found = collective.in_sample(collective.load(gpu), load_device(gpu), collective.CollectiveParameters(**values))
        return np.log1p(found.relative[found.counted])
    if group in MOE_GROUPS:
        held = moe.in_sample(group, gpu, moe.MoeParameters(**values))
    else:
        struct = type(getattr(attention.AttentionParameters(), group))
        held = attention.in_sample(group, gpu, struct(**values))
    return held.errors[held.cold]


def own_fits(gpu: str) -> dict[str, Fit]:
    """Every group that `gpu` has a table for."""
    return {group: fit_group(group, (gpu,)) for group in TABLED_GROUPS if has_table(group, gpu)}


# -- groups of a file ----------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """How one file comes about. `gpus`: whose tables it is fitted on. `kind`: what its spread rests on."""

    gpus: tuple[str, ...]
    reference_gpu: str
    kind: RestsOn
    adjust: Callable[[Groups], Groups] | None = None
    judgement: str = ""
    host_factor: float = 1.0  # how many times slower the board's host is than a server's


def fitted_groups(name: str, gpus: tuple[str, ...]) -> Groups:
    """All groups from the tables of `gpus`, and from all GPUs' tables where those have none."""
    groups: Groups = {}
    for group in TABLED_GROUPS:
        own = tuple(gpu for gpu in gpus if has_table(group, gpu))
        if group == "moe8" and not own and any(has_table("moe8_block", gpu) for gpu in gpus):
            continue  # below
        if group == "collective":
            own += _MORE_LINKS.get(name, ())
        everyone = tuple(gpu for gpu in tables.GPUS if has_table(group, gpu))
        fit = fit_group(group, own or everyone)
        groups[group] = rounded(_unseen_from(fit_group(group, everyone), group, fit))
    # Hopper's CUTLASS rows of 8-bit experts are an anomaly that no server would accept; blocks of 8 bit stand in.
    groups.setdefault("moe8", groups["moe8_block"])
    return {group: groups[group] for group in TABLED_GROUPS}


def _unseen_from(overall: Fit, group: str, fit: Fit) -> dict[str, float]:
    """A fit's values; attention parameters that its rows say nothing of (8-bit caches on A100) from all GPUs."""
    if group not in ("prefill", "decode"):
        return fit.values
    base = type(getattr(attention.AttentionParameters(), group))(**overall.values)
    return msgspec.structs.asdict(attention.parameters(group, fit.solution, base))


_GEMM_MEMORY = ("memory_fraction", "memory_ramp_s", "skinny_gain")
_ATTENTION_MEMORY = (
    "bandwidth_fraction", "bandwidth_fraction_8bit", "write_fraction", "write_fraction_8bit", "token_fraction",
)  # fmt: skip
_MOE_MEMORY = ("bandwidth_fraction", "traffic_fraction")


def _memory_names(group: str) -> tuple[str, ...]:
    """The parameters of a group that belong to the memory, not to the multiprocessors."""
    if group.startswith("gemm"):
        return _GEMM_MEMORY
    return _MOE_MEMORY if group in MOE_GROUPS else _ATTENTION_MEMORY


def _ampere_gddr(groups: Groups) -> Groups:
    """Arithmetic of A100, memory and links of L40S, whose GDDR6 without NVLink is that of A10, A40 and A6000.

    A judgement, and a cautious one: single-query runs of an A6000 stream weights at about 0.88 of the pin bandwidth,
    L40S's figures give 0.84 for one row. The runs were not used, so that they remain a test.
    """
    ada = fitted_groups("ada", ("l40s",))
    out: Groups = {}
    for group, values in groups.items():
        names = () if group == "collective" else _memory_names(group)
        out[group] = {**values, **{name: ada[group][name] for name in names if name in values}}
    return {**out, "collective": ada["collective"]}


# Measured on AGX Orin at MAXN (ApxInf roofline notes): reads at 152.8 of 204.8 GB/s, bf16 products at 33.4-34.1 of 42.6
# TFLOPS; on Thor: reads at 257 of 273 GB/s. Weights of a product get 0.98 of what a plain read gets.
ORIN_READ, ORIN_GEMM, THOR_READ, WEIGHTS_OF_READ = 0.746, 0.79, 0.941, 0.98
# Serving runs on AGX Orin (EdgeReasoning, vLLM 0.8.6): decode steps grow with the number of sequences as if they ran on
# the vector units. Seen up to the largest decode batch (32), not from the smallest prompt on (86); where in between it
# ends is not known, and nothing is drawn out. The share is what those runs gave under the previous form of the model.
ORIN_SKINNY = {"skinny_rows": 32.0, "skinny_vector_fraction": 0.54}
# With 16 multiprocessors, 4 MB of L2 and one memory for host and GPU, loads hide behind arithmetic less than on A100:
# the exponent that fits the prefills of those runs.
ORIN_ROOF_EXPONENT = 1.6
# Single-threaded Python on Orin's Cortex-A78AE at 2.2 GHz against servers of 2024: what launching a kernel took (some
# 120 us against 20 us) in those runs.
ORIN_HOST_FACTOR = 6.0


def _with_memory_ceiling(groups: Groups, fraction: float) -> Groups:
    """Weights and KV cache stream at `fraction` of the pin bandwidth."""
    out: Groups = {}
    for group, values in groups.items():
        names = () if group in ("collective", "prefill") else ("memory_fraction", *_ATTENTION_MEMORY[:2])
        out[group] = {**values, **{name: round(fraction, 4) for name in names if name in values}}
    return out


def _jetson(groups: Groups) -> Groups:
    """A100's kernels under Orin's measured ceilings of memory and arithmetic (same instructions: sm_80, sm_87)."""
    out = _with_memory_ceiling(groups, ORIN_READ * WEIGHTS_OF_READ)
    out = {**out, **{name: {**out[name], "compute_fraction": ORIN_GEMM} for name in ("gemm16", "gemm8")}}
    return {**out, "gemm16": {**out["gemm16"], **ORIN_SKINNY, "roof_exponent": ORIN_ROOF_EXPONENT}}


def _thor(groups: Groups) -> Groups:
    """RTX PRO 6000's kernels under Thor's measured memory ceiling. Compute capability 11.0 has no table at all."""
    return _with_memory_ceiling(groups, THOR_READ * WEIGHTS_OF_READ)


_ADA_MEMORY = "judgement: arithmetic of A100, memory and links of L40S (both GDDR6, no NVLink)"
RECIPES: dict[str, Recipe] = {
    **{gpu: Recipe((gpu,), gpu, "own") for gpu in tables.GPUS},
    "ampere": Recipe(("a100-sxm-80gb",), "a100-sxm-80gb", "one sibling"),
    "hopper": Recipe(("h100-sxm", "h200-sxm"), "h200-sxm", "siblings"),
    "ada": Recipe(("l40s",), "l40s", "one sibling"),
    "blackwell": Recipe(("b200-sxm",), "b200-sxm", "one sibling"),
    "blackwell-12.0": Recipe(("rtx-pro-6000",), "rtx-pro-6000", "one sibling"),
    "ampere-8.6": Recipe(("a100-sxm-80gb",), "a6000", "none", _ampere_gddr, _ADA_MEMORY),
    "jetson": Recipe(
        ("a100-sxm-80gb",), "orin-agx-64gb", "none", _jetson,
        "judgement: kernels of A100 under the ceilings measured on AGX Orin (ApxInf: reads 0.746, products 0.79); "
        "products of up to 64 rows on the vector units, roofline exponent and host, from serving runs on AGX Orin",
        ORIN_HOST_FACTOR,
    ),
    "thor-agx-128gb": Recipe(
        ("rtx-pro-6000",), "thor-agx-128gb", "none", _thor,
        "judgement: kernels of RTX PRO 6000 under the read ceiling measured on Thor (ApxInf: 0.941)",
    ),
    "any": Recipe(tables.GPUS, "h100-sxm", "any"),
}  # fmt: skip


# -- carried to another GPU -------------------------------------------------------------------------------------------


def families() -> dict[str, tuple[str, ...]]:
    """GPUs with tables by the family that is fitted on them."""
    return {name: r.gpus for name, r in RECIPES.items() if r.kind in ("siblings", "one sibling") and not r.adjust}


def transfer_bias(gpu: str) -> dict[str, dict[str, float]]:
    """Median log(predicted / measured) of `gpu` by group, under fits on its siblings, and on other families alone."""
    family = next(gpus for gpus in families().values() if gpu in gpus)
    out: dict[str, dict[str, float]] = {"siblings": {}, "others": {}}
    for group in sorted({group for groups in KINDS.values() for group in groups}):
        if not has_table(group, gpu):
            continue
        seen = [other for other in tables.GPUS if other != gpu and has_table(group, other)]
        for name, gpus in (
            ("siblings", tuple(other for other in seen if other in family)),
            ("others", tuple(other for other in seen if other not in family)),
        ):
            if gpus:
                out[name][group] = float(np.median(errors_of(group, gpu, fit_group(group, gpus).values)))
    return out


# -- files ---------------------------------------------------------------------------------------------------------


def build(name: str, ledger: Sequence[Mapping[str, Any]], biases: Mapping[str, Any]) -> Kernels:
    """The file `name`. `ledger`: rows of `report.operator_ledger` of its GPUs; `biases`: `transfer_bias` of all."""
    if name not in RECIPES:
        raise unknown_name("file of kernels", name, RECIPES)
    recipe = RECIPES[name]
    groups = fitted_groups(name, recipe.gpus)
    if recipe.adjust:
        groups = recipe.adjust(groups)
    device = load_device(recipe.reference_gpu)
    power, power_source, energy_sd = power_of(name, recipe.kind, device, groups["gemm16"])
    where = f"fitted on {', '.join(recipe.gpus)}"
    missing = [group for group in TABLED_GROUPS if not any(has_table(group, gpu) for gpu in recipe.gpus)]
    parts = [f"{TABLES}, {where}"]
    if missing:
        parts.append(f"{', '.join(missing)}: no table, from {'8-bit blocks or ' if 'moe8' in missing else ''}all GPUs")
    spreads = {**time_spreads(recipe.kind, recipe.gpus, ledger, biases), "energy": energy_sd, "power": energy_sd}
    return Kernels(
        id=name,
        source="; ".join(part for part in (*parts, recipe.judgement, power_source) if part),
        reference_gpu=recipe.reference_gpu,
        host_factor=recipe.host_factor,
        log_sd={kind: float(f"{sd:.2g}") for kind, sd in spreads.items()},
        parameters={**groups, "power": power},
    )


def kernels_text(kernels: Kernels) -> str:
    """A file of kernels as TOML."""
    lines = ["# Written by: calibrate kernels", ""]
    named = ("id", "source", "reference_gpu", "host_factor")
    lines += [f"{name} = {toml_value(getattr(kernels, name))}" for name in named]
    lines += ["", "[log_sd]", *(f"{kind} = {toml_value(sd)}" for kind, sd in kernels.log_sd.items())]
    return "\n".join([*lines, *parameter_lines(kernels.parameters)]) + "\n"


def parallel(function: Callable[[str], Any], names: Sequence[str], jobs: int, progress: Progress) -> Iterator[Any]:
    """`function` of every name, in order, on `jobs` processes; progress(done, total) after each."""
    progress(0, len(names))
    if jobs == 1 or len(names) == 1:
        found: Iterable[Any] = map(function, names)
    else:
        from joblib import Parallel, delayed  # comes with scikit-learn; slow to load

        found = Parallel(n_jobs=jobs, return_as="generator")(delayed(function)(name) for name in names)
    for done, result in enumerate(found, start=1):
        progress(done, len(names))
        yield result
