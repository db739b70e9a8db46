"""All parameters of a calibration, in named groups: kernels of the device, overheads of the engine, power.

Fits and tables address them by dotted names ("gemm16.bandwidth_fraction"). Every group is a struct beside the formula
that uses it, with a table of specifications (unit, meaning, bounds, prior spread).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from simulator.kernels import attention, collective, gemm, moe
from simulator.kernels.spec import ParameterSpec
from simulator.overheads import ENGINE_SPECS, POWER_SPECS, EngineParameters, PowerParameters


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value of every parameter.

    `gemm16`: 16- and 32-bit arithmetic; `gemm8`: 8-bit and narrower; `gemm_weight_only`: 16-bit arithmetic on weights
    of 8 or 4 bits (Marlin and its like). Fused experts have one group per kernel family: 16-bit arithmetic (also on
    8-bit weights), int4 weights, 8-bit per tensor, 8-bit in blocks, mxfp4 weights with 16-bit or narrow activations,
    nvfp4.
    """

    gemm16: gemm.GemmParameters
    gemm8: gemm.GemmParameters
    gemm_weight_only: gemm.GemmParameters
    prefill: attention.PrefillParameters
    decode: attention.DecodeParameters
    moe16: moe.MoeParameters
    moe4_weight_only: moe.MoeParameters
    moe8: moe.MoeParameters
    moe8_block: moe.MoeParameters
    moe_mxfp4: moe.MoeParameters
    moe_mxfp4_a8: moe.MoeParameters
    moe_nvfp4: moe.MoeParameters
    collective: collective.CollectiveParameters
    engine: EngineParameters
    power: PowerParameters


MOE_GROUPS = tuple(name for name in Parameters.__struct_fields__ if name.startswith("moe"))


def _of(phase: str) -> dict[str, ParameterSpec]:
    """The attention parameters of one phase, by their bare names."""
    return {
        name.removeprefix(f"{phase}."): spec for name, spec in attention.SPECS.items() if name.startswith(f"{phase}.")
    }


GROUP_SPECS: dict[str, Mapping[str, ParameterSpec]] = {
    "gemm16": gemm.SPECS,
    "gemm8": gemm.SPECS,
    "gemm_weight_only": gemm.SPECS,
    "prefill": _of("prefill"),
    "decode": _of("decode"),
    **dict.fromkeys(MOE_GROUPS, moe.SPECS),
    "collective": collective.SPECS,
    "engine": ENGINE_SPECS,
    "power": POWER_SPECS,
}
KERNEL_GROUPS = tuple(name for name in GROUP_SPECS if name not in ("engine", "power"))
SPECS: dict[str, ParameterSpec] = {
    f"{group}.{name}": spec for group, specs in GROUP_SPECS.items() for name, spec in specs.items()
}


def flatten(parameters: Parameters) -> dict[str, float]:
    """Every value by its dotted name, in the order of SPECS."""
    return {name: getattr(getattr(parameters, name.split(".")[0]), name.split(".")[1]) for name in SPECS}


def with_values(parameters: Parameters, values: Mapping[str, float]) -> Parameters:
    """`parameters` with other values for the dotted names in `values`."""
    by_group: dict[str, dict[str, float]] = {}
    for dotted, value in values.items():
        group, name = dotted.split(".")
        by_group.setdefault(group, {})[name] = value
    replaced = {
        group: msgspec.structs.replace(getattr(parameters, group), **changes) for group, changes in by_group.items()
    }
    return msgspec.structs.replace(parameters, **replaced)
