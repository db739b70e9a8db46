"""F1, another system: what a record or a simulator's file says of the configuration is not what ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.changes import retimed, slower
from validate.self_test.choose import as_run_under, measured, replaced, resimulated, simulated
from validate.self_test.injection import Apply, Injected, Injector, Size

replace = msgspec.structs.replace


def _labelled(change: Callable[[RunRecord, float], dict[str, Any] | None]) -> Apply:
    """The figures stay, the label changes."""

    def label(record: RunRecord, size: float) -> RunRecord | None:
        fields = change(record, size)
        return None if not fields else replace(record, **fields)

    return measured(label, fewest=3)


def _ran(change: Callable[[RunRecord, float], dict[str, Any] | None]) -> Apply:
    """The label stays, the figures are those of another configuration."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        def one(case: Case) -> RunRecord | None:
            fields = change(case.record, size)
            return None if not fields else as_run_under(bench, case, replace(case.record, **fields))

        return replaced(bench, evidence, evidence.cases, one, 3)

    return apply


def _split(record: RunRecord, degree: float) -> dict[str, Any] | None:
    tp = round((record.tp or 1) * degree)
    return {"tp": tp, "n_gpus": tp * (record.pp or 1) * (record.dp or 1)} if 1 <= tp <= 8 else None


def _types(weights: str) -> Callable[[RunRecord, float], dict[str, Any] | None]:
    def change(record: RunRecord, size: float) -> dict[str, Any] | None:
        if record.weight_dtype not in ("bf16", "fp16"):
            return None
        compute = {} if weights == "int4" else {"activation_dtype": weights}
        return {"weight_dtype": weights} | compute

    return change


_GPUS = {"h100-sxm": ("a100-sxm-80gb", "h200-sxm"), "orin-agx-64gb": ("orin-nano-8gb", "thor-agx-128gb")}


def _seats(record: RunRecord, share: float) -> dict[str, Any] | None:
    limit = record.max_num_seqs or round(record.concurrency or 1)
    fewer = max(1, round(limit * share))
    return {"max_num_seqs": fewer} if fewer < (record.concurrency or 1) else None


def _other_capacity(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
    """A simulator that derives more KV blocks than the engine had: its figures and the capacity that it prints."""
    new = {}
    for case in evidence.cases:
        capacity = case.record.kv_capacity_tok
        if capacity is None or case.simulated is None:
            continue
        said = case.prediction.outcome.values
        other = bench.predict(replace(case.record, kv_capacity_tok=size * capacity)).outcome.values
        theirs = case.simulated.measured()
        figures = {n: v * other[n] / said[n] for n, v in theirs.items() if said.get(n) and other.get(n)}
        new[case.id] = replace(case.simulated, **figures | {"kv_capacity_tok": size * capacity})
    return resimulated(evidence, new, 3)


def _of_simulated(fields: Callable[[RunRecord], dict[str, Any]], stretch: bool = False) -> Apply:
    """Another simulator's file that says another setting; its decode times `size` times as long where they follow."""

    def change(case: Case, size: float) -> RunRecord:
        return replace(slower(case.simulated, size) if stretch else case.simulated, **fields(case.simulated))

    return simulated(change)


def _more_bandwidth(case: Case, factor: float) -> RunRecord:
    """Decoding is bound by memory: so are the times between tokens and, where answers are long, all others."""
    whole = case.record.tpot_s_mean is None
    return slower(case.simulated, 1.0 / factor) if whole else retimed(case.simulated, gaps=1.0 / factor)


def _other_gpu(record: RunRecord, which: float) -> dict[str, Any] | None:
    gpus = _GPUS.get(record.gpu)
    return {"gpu": gpus[int(which)], "power_mode": None} if gpus else None


INJECTORS = (
    Injector(
        fault="F1",
        kind="16 bit said, 8 bit run",
        apply=_ran(_types("fp8")),
        materials=("server", "mlenergy", "node"),
        sizes=(Size(1, "fp8 for bf16", "MLPERF-DT"),),
    ),
    Injector(
        fault="F1",
        kind="16 bit said, 4-bit weights run",
        apply=_ran(_types("int4")),
        materials=("server", "mlenergy", "edge"),
        sizes=(Size(1, "int4 for bf16", "MLPERF-DT"),),
    ),
    Injector(
        fault="F1",
        kind="8 bit said, 16 bit run",
        apply=_labelled(_types("fp8")),
        materials=("server", "mlenergy"),
        sizes=(Size(1, "bf16 for fp8"),),
    ),
    Injector(
        fault="F1",
        kind="fewer GPUs said than ran",
        apply=_labelled(_split),
        also=("F6",),
        materials=("node", "mlenergy", "argonne"),
        sizes=(Size(0.5, "half", "CARD-GPUS"), Size(0.25, "a quarter")),
    ),
    Injector(
        fault="F1",
        kind="more GPUs said than ran",
        apply=_labelled(_split),
        materials=("server", "argonne", "helm"),
        sizes=(Size(2, "x2", "HELM-TP"), Size(8, "x8", "HELM-TP")),
    ),
    Injector(
        fault="F1",
        kind="TP label 1 beside all GPUs",
        materials=("node", "mlenergy"),
        sizes=(Size(1, "", "MLE-TP"),),
        apply=_labelled(lambda r, size: {"tp": 1, "ep": r.tp} if (r.tp or 1) > 1 else None),
    ),
    Injector(
        fault="F1",
        kind="another GPU said",
        apply=_labelled(_other_gpu),
        materials=("server", "mlenergy", "edge"),
        sizes=(Size(0, "A100 for H100, Orin Nano for AGX", "SMOL-204"), Size(1, "H200 for H100, Thor for AGX")),
    ),
    Injector(
        fault="F1",
        kind="eager run, graphs said",
        materials=("server", "mlenergy", "node"),
        sizes=(Size(1, "eager"),),
        apply=_ran(lambda r, size: {"cuda_graphs": False} if r.cuda_graphs else None),
    ),
    Injector(
        fault="F1",
        kind="fewer seats than said",
        apply=_ran(_seats),
        materials=("server", "node"),
        sizes=(Size(0.75, "0.75"), Size(0.5, "0.5"), Size(0.25, "0.25"), Size(1 / 16, "1/16")),
    ),
    Injector(
        fault="F1",
        kind="KV blocks of the simulator",
        side="simulated",
        apply=_other_capacity,
        materials=("full cache",),
        sizes=(Size(1.02, "x1.02"), Size(1.1, "x1.1"), Size(3400 / 2588, "3400 for 2588", "LSS-KV"), Size(2, "x2")),
    ),
    Injector(
        fault="F1",
        kind="KV memory of another board",
        side="simulated",
        apply=_other_capacity,
        materials=("server", "node"),
        sizes=(Size(2, "32 GB for 16", "V100-MEM"),),
    ),
    Injector(
        fault="F1",
        kind="batched tokens of another entry point",
        side="simulated",
        materials=("server", "mlenergy", "edge"),
        sizes=(Size(1, "16384 for 8192", "LLM-SERVE"),),
        apply=_of_simulated(lambda r: {"max_num_batched_tokens": 2 * (r.max_num_batched_tokens or 8192)}),
    ),
    Injector(
        fault="F1",
        kind="kernels of another version",
        side="simulated",
        materials=("server", "mlenergy"),
        apply=_of_simulated(lambda r: {"engine_version": "0.19.0"}, stretch=True),
        sizes=(Size(1.07, "x1.07", "AIC-DRIFT"), Size(1.23, "x1.23", "AIC-DRIFT")),
    ),
    Injector(
        fault="F1",
        kind="setting of the simulator",
        side="simulated",
        materials=("server", "mlenergy", "node"),
        apply=_of_simulated(lambda r: {"prefix_caching": not r.prefix_caching, "kv_dtype": "fp8"}),
        sizes=(Size(1, "prefix cache, KV type"),),
    ),
    Injector(
        fault="F1",
        kind="bandwidth of the simulator's sheet",
        side="simulated",
        also=("F2",),
        apply=simulated(_more_bandwidth),
        materials=("repeats", "mlenergy", "modelcards_vllm", "edge"),
        sizes=(
            Size(1.01, "x1.01"),
            Size(1.05, "x1.05"),
            Size(1.25, "x1.25"),
            Size(2, "204.8 for 102.4 GB/s", "SMOL-204"),
            Size(126 / 281, "126 for 281 GB/s", "MESS-126-281"),
        ),
    ),
)
