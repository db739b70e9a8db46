"""Runs of one configuration that differ in lengths only: each implies a cost per token, and they must agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from validate.cases import Case
from validate.finding import Finding
from validate.wording import counted

APART = 1.2  # the smallest case that is known is 1.3; queries of one configuration on model cards agree within 1.10
AGREE = 1.1  # of the other lengths around their median, beyond which they are no view of this one
LENGTHS = 4  # of one configuration: one can be outvoted
ROUNDED_S = 0.05  # times on model cards are rounded to 0.1 s


def cost_per_token(cases: Sequence[Case]) -> Iterator[Finding]:
    """Lengths of one configuration imply one cost per token: one that is apart from all others is of something else.

    Shapes over lengths are the simulator's (a prompt costs less than an output), its level cancels out.
    """
    found: list[tuple[Case, float, float]] = []
    for group in _by_configuration(cases):
        logs = np.array([math.log(case.record.e2e_s_mean / _simulated_e2e_s(case)) for case in group])
        for i, case in enumerate(group):
            others = np.delete(logs, i)
            apart = math.exp(abs(logs[i] - np.median(others)))
            agree = math.exp(float(np.quantile(np.abs(others - np.median(others)), 0.9)))
            rounding = 1 + ROUNDED_S / case.record.e2e_s_mean
            if apart > APART * rounding and agree < AGREE:
                found.append((case, float(logs[i] - np.median(others)), agree))
    if not found:
        return
    worst, log_ratio, agree = max(found, key=lambda row: abs(row[1]))
    r, ratio = worst.record, math.exp(log_ratio)
    yield Finding(
        check="identities.cost_per_token", layer="views", fault="F6", also=("F9",), severity="warn",
        confidence="likely",
        runs=tuple(case.id for case, *_ in found), metrics=("e2e_s_mean",),
        says=f"{counted(len(found), 'run')} whose end-to-end time is not that of the other lengths of its own "
        "configuration:"
        f" {r.e2e_s_mean:.3g} s for {r.input_tok:g} + {r.output_tok:g} tokens is {ratio:.2f} times what those imply",
        evidence={
            "ratio": ratio, "ratio_high": APART, "others_agree_within": agree, "e2e_s_mean": r.e2e_s_mean,
            "formula": "(measured / simulated e2e) over the median of the same for the other lengths",
            "worst_run": worst.id, "runs": len(found),
        },
        next="see whether this workload ran in the same batch, on the same devices, with the same engine settings",
    )  # fmt: skip


def _simulated_e2e_s(case: Case) -> float | None:
    return case.prediction.outcome.values.get("e2e_s_mean")


def _by_configuration(cases: Sequence[Case]) -> list[list[Case]]:
    """Single queries that mostly decode, in groups that differ in lengths only; several enough to outvote one."""
    groups: dict[tuple, list[Case]] = {}
    for case in cases:
        r, simulated_s = case.record, _simulated_e2e_s(case)
        if (
            r.load != "static_batch"
            or r.concurrency != 1
            or (r.output_tok or 0) < 2
            or not r.e2e_s_mean
            or not simulated_s
        ):
            continue
        first_s = case.prediction.outcome.values.get("ttft_s_mean", simulated_s)
        if first_s < simulated_s / 2:
            key = (
                r.source, r.gpu, r.power_mode, r.n_gpus, r.tp, r.pp, r.ep, r.dp, r.model, r.weight_dtype,
                r.activation_dtype, r.kv_dtype, r.engine, r.engine_version, r.cuda_graphs, r.campaign,
            )  # fmt: skip
            groups.setdefault(key, []).append(case)
    return [group for group in groups.values() if len({_lengths(case) for case in group}) >= LENGTHS]


def _lengths(case: Case) -> tuple[float | None, float | None]:
    return case.record.input_tok, case.record.output_tok
