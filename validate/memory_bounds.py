"""B4: what runs, and what is said to fit, against the memory of the devices. On one side of the pairs at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from calibration.records import RunRecord
from simulator.memory import kv_byte_per_tok, weights_byte
from validate.cases import Case, Evidence
from validate.finding import Finding

# Sequences, tokens and bytes above their limit by more than this: means of running sequences are rounded.
MARGIN = 0.02
CONTEXTS = "B4: sum of contexts x KV bytes per token + weights <= memory"
CAPACITY = "B4: capacity x KV bytes per token + weights <= memory"
RUNNING = "B4: running sequences <= max_num_seqs x dp"


@dataclass(frozen=True)
class Held:
    """What one device holds, bytes: weights, and the KV cache of `tok` tokens of its replica.

    usable: the share of the device's memory that the engine was told to use, 1 where that is not stated.
    """

    case: Case
    tok: float
    weights: float
    kv: float
    memory: float
    usable: float

    @property
    def share(self) -> float:
        """Of the device's whole memory."""
        return (self.weights + self.kv) / self.memory

    @property
    def degree(self) -> str:
        """ "memory": more than there is; "usable": more than the engine may use; "" when it fits."""
        if self.share > 1.0 + MARGIN:
            return "memory"
        return "usable" if self.share > self.usable * (1.0 + MARGIN) else ""


def memory_findings(evidence: Evidence, side: str) -> Iterator[Finding]:
    """Contexts, stated capacity and running sequences of the "measured" or the "simulated" side."""
    contexts: dict[tuple[str, str], list[Held]] = {}
    capacity: dict[str, list[Held]] = {}
    running: list[tuple[Case, RunRecord]] = []
    own = side == "simulated" and evidence.own
    for case in evidence.cases:
        record = case.record if side == "measured" else case.simulated
        if case.setup is None or record is None or _too_heavy(case):
            continue
        if _known(record.batch_mean):
            held = contexts_of(case, record)
            shared = held.degree and _prompts_may_be_shared(case, record)
            if held.degree and not (own and (shared or held.degree == "usable")):  # our own engine counts blocks itself
                contexts.setdefault((held.degree, "shared" if shared else ""), []).append(held)
            if _over_limit(case, record) > 1.0 + MARGIN:
                running.append((case, record))
        if _known(record.kv_capacity_tok):
            held = _of_tokens(case, record, record.kv_capacity_tok / case.setup.parallel.dp)
            if held.kv and held.degree and not (own and held.degree == "usable"):
                capacity.setdefault(held.degree, []).append(held)
    whose = "measured" if side == "measured" else "this simulator's own" if own else "simulated"
    for (degree, shared), found in contexts.items():
        yield _of_contexts(degree, bool(shared), found, whose)
    for degree, found in capacity.items():
        yield _of_capacity(degree, found, whose)
    if running:
        yield _of_running(running, whose)


def _too_heavy(case: Case) -> bool:
    """Weights alone do not fit: a contradiction of the configuration, and no matter of caches."""
    setup = case.setup
    return weights_byte(setup.model, setup.precision, setup.parallel) > setup.device.memory.capacity_byte


def contexts_of(case: Case, record: RunRecord) -> Held:
    """`batch_mean` sequences with their prompts and half of their outputs: at least, since long ones run longer."""
    per_sequence = case.setup.input_tok + case.setup.output_tok / 2.0
    return _of_tokens(case, record, record.batch_mean / case.setup.parallel.dp * per_sequence)


def _of_tokens(case: Case, record: RunRecord, tok: float) -> Held:
    """Layers with a window keep no more than it: engines that keep everything hold more still."""
    setup = case.setup
    held_tok = setup.input_tok + setup.output_tok / 2.0
    each = kv_byte_per_tok(setup.model, setup.precision, setup.parallel, held_tok)
    weights = weights_byte(setup.model, setup.precision, setup.parallel)
    usable = record.gpu_memory_utilization or case.record.gpu_memory_utilization or 1.0
    return Held(case, tok, weights, tok * each, float(setup.device.memory.capacity_byte), usable)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0.0


def _prompts_may_be_shared(case: Case, record: RunRecord) -> bool:
    """Whether shared blocks could explain it: prefix caching is on, and outputs, which nobody shares, fit alone."""
    setup = case.setup
    caching = setup.settings.enable_prefix_caching if record.prefix_caching is None else record.prefix_caching
    if not caching and record.load != "parallel_sampling":
        return False
    written = record.batch_mean / setup.parallel.dp * setup.output_tok / 2.0
    return _of_tokens(case, record, written).degree != "memory"


def _over_limit(case: Case, record: RunRecord) -> float:
    """Running sequences over what the engine was told to run at the most, over all replicas."""
    limit = record.max_num_seqs or case.record.max_num_seqs
    return record.batch_mean / (limit * case.setup.parallel.dp) if limit else 0.0


def _of_contexts(degree: str, shared: bool, found: list[Held], whose: str) -> Finding:
    worst = max(found, key=lambda held: held.share)
    tail = ", possible where prompts share their blocks" if shared else ", which no shared prompt explains"
    severity = "note" if shared else "fail" if degree == "memory" else "warn"
    return Finding(
        check="bounds.kv_contexts", layer="bounds", fault="F1" if shared else "F3",
        also=("F3", "F8") if shared else ("F1", "F5"),
        severity=severity, confidence="possible" if severity != "fail" else "likely",
        runs=tuple(held.case.id for held in found), metrics=() if shared else ("batch_mean",),
        says=f"{whose} running sequences of {worst.case.id} hold {_holds(worst, degree)} ({_runs(found)}){tail}",
        evidence=_numbers(worst, whose, CONTEXTS),
        next="count distinct blocks: read what share of the prompts the prefix cache served, and what ran at once",
    )  # fmt: skip


def _of_capacity(degree: str, found: list[Held], whose: str) -> Finding:
    worst = max(found, key=lambda held: held.share)
    return Finding(
        check="bounds.kv_capacity", layer="bounds", fault="F3" if degree == "memory" else "F1",
        also=("F1",) if degree == "memory" else ("F3",),
        severity="fail" if degree == "memory" else "warn", confidence="likely",
        runs=tuple(held.case.id for held in found), metrics=("kv_capacity_tok",),
        says=f"{whose} KV capacity of {worst.case.id}, {worst.tok:,.0f} tokens per replica, needs "
        f"{_holds(worst, degree)} ({_runs(found)})",
        evidence=_numbers(worst, whose, CAPACITY),
        next="compare the engine's resolved number of KV blocks, their size and type, and gpu_memory_utilization",
    )  # fmt: skip


def _of_running(found: list[tuple[Case, RunRecord]], whose: str) -> Finding:
    case, record = max(found, key=lambda pair: _over_limit(*pair))
    limit = float((record.max_num_seqs or case.record.max_num_seqs) * case.setup.parallel.dp)
    return Finding(
        check="bounds.running", layer="bounds", fault="F3", also=("F1",), severity="fail", confidence="certain",
        runs=tuple(case.id for case, _ in found), metrics=("batch_mean",),
        says=f"{whose} batch_mean of {case.id} is {record.batch_mean:.4g}, above max_num_seqs x replicas = {limit:g} "
        f"({_runs(found)})",
        evidence={
            "side": whose, "worst_run": case.id, "batch_mean": record.batch_mean, "limit": limit, "formula": RUNNING,
        },
        next="read max_num_seqs from the engine's resolved configuration, and whether waiting requests were counted",
    )  # fmt: skip


def _holds(held: Held, degree: str) -> str:
    gigabyte = f"{held.kv / 1e9:.3g} GB of KV cache beside {held.weights / 1e9:.3g} GB of weights on each device of "
    gigabyte += f"{held.memory / 1e9:.3g} GB"
    return gigabyte if degree == "memory" else f"{gigabyte}, of which the engine may use {held.usable:.0%}"


def _runs(found: list) -> str:
    return "1 run" if len(found) == 1 else f"{len(found)} runs"


def _numbers(held: Held, whose: str, formula: str) -> dict[str, float | str]:
    return {
        "side": whose, "worst_run": held.case.id, "kv_byte_per_device": held.kv,
        "weights_byte_per_device": held.weights, "memory_byte_per_device": held.memory, "usable_share": held.usable,
        "share_of_memory": held.share, "formula": formula,
    }  # fmt: skip
