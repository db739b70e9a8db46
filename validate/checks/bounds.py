"""F3, physical bounds of time and memory (B1 to B4, B6, B8), on the measured side and on the simulated one.

Times are held against the same schedule of steps at the data sheet's full bandwidth and dense peaks (`Case.floor`) and
against what needs no schedule at all (`validate.physical_floor`); sequences and caches against the device's memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from calibration.setup import Setup
from validate.cases import Case, Evidence
from validate.finding import Finding
from validate.memory_bounds import memory_findings
from validate.physical_floor import StepNeed, alternatives, certain_floor, decode_step, prefill_step, running_limit
from validate.wording import counted, figure

# Below the floor by more than this (relative) a figure is refused; what lies between is labelled. Data sheets are
# rounded by about 1 % (3.35 TB/s, 7.7 or 8 TB/s), and so are clocks; the least clean run that ships stands at 1.13.
MARGIN = 0.03
# Shares of the data-sheet peak above which a figure is pointed out (TAXONOMY B6: 0.92 of bandwidth, 0.8 of FLOPs).
HIGH_BANDWIDTH_SHARE, HIGH_COMPUTE_SHARE = 0.92, 0.80
# More tokens per step than this no speculative decoding is known to accept on average.
MOST_TOKENS_PER_STEP = 8.0

FAMILY = {
    "tpot": "token", "itl": "token", "ttft": "ttft", "e2e": "e2e", "duration": "e2e", "output": "rate", "total": "rate",
}  # fmt: skip
BOUND = {
    "token": "B1: time per token >= bytes of a step / bandwidth and >= FLOPs / peak",
    "ttft": "B2: time to the first token >= FLOPs of the prompt / peak and >= bytes of a step / bandwidth",
    "rate": "B3: tokens per second <= running sequences / the shortest step",
    "e2e": "B8: end-to-end time >= first token + (n - 1) x the shortest step",
}
CAUSES = {
    "token": "look for speculative decoding, tokens counted per chunk, a smaller type of weights or KV cache, or "
    "devices counted twice",
    "ttft": "look for a prefix cache that held the prompts, a smaller type of arithmetic, or devices counted twice",
    "rate": "look for prompt tokens counted as output, rates of a node taken for one device, or a smaller type",
    "e2e": "look for outputs that ended early, a prefix cache, or a smaller type of weights",
}


@dataclass(frozen=True)
class Hit:
    """One figure against its floor; `share` is measured / floor of a time, floor / measured of a rate."""

    case: Case
    metric: str
    value: float
    floor: float
    side: str  # "measured" or "simulated"

    @property
    def share(self) -> float:
        return self.floor / self.value if self.family == "rate" else self.value / self.floor

    @property
    def family(self) -> str:
        return FAMILY[self.metric.split("_")[0]]


def check(evidence: Evidence) -> Iterator[Finding]:
    """What is beyond the data sheet on either side: times and rates, then memory."""
    for side in ("measured", "simulated"):
        hits = [hit for case in evidence.cases for hit in _hits(case, side)]
        yield from _times(hits, side, evidence.own)
        yield from memory_findings(evidence, side)


# -- times and rates -----------------------------------------------------------------------------------------------


def _hits(case: Case, side: str) -> Iterator[Hit]:
    """Figures at or near their floor, on one side."""
    record = case.record if side == "measured" else case.simulated
    if case.setup is None or record is None:
        return
    for metric, value in record.measured().items():
        floor = floor_of(case, metric)
        if floor is None or not math.isfinite(value) or (value <= 0.0 and metric.endswith("tok_per_s")):
            continue
        hit = Hit(case, metric, value, floor, side)
        if hit.share * min(HIGH_BANDWIDTH_SHARE, HIGH_COMPUTE_SHARE) < 1.0:
            yield hit


def floor_of(case: Case, metric: str) -> float | None:
    """The bound of one figure: of a 99th percentile that of the median, which no schedule puts above it.

    None where the schedule's figure is none: whole durations of runs that do not say how many requests they had, and
    rates of an open loop, which its arrivals set.
    """
    if metric.split("_")[0] not in FAMILY:
        return None
    record, floor = case.record, case.floor
    if metric == "duration_s" and record.load not in ("static_batch", "parallel_sampling") and not record.num_requests:
        return None
    if record.load == "open_loop" and (metric == "duration_s" or metric.endswith("tok_per_s")):
        return None
    found = [floor.get(name) for name in {metric, metric.replace("_p99", "_median")}]
    known = [value for value in found if value is not None and math.isfinite(value) and value > 0.0]
    return min(known) if known else None


def _times(hits: list[Hit], side: str, own: bool) -> Iterator[Finding]:
    """One finding per family and degree: certain, by the schedule, by its order of steps, within the margin, near."""
    groups: dict[tuple[str, str], list[Hit]] = {}
    for hit in hits:
        degree = _degree(hit)
        if degree and not (degree == "near" and side == "simulated"):
            groups.setdefault((hit.family, degree), []).append(hit)
    for (family, degree), found in groups.items():
        yield _time_finding(family, degree, sorted(found, key=lambda hit: hit.share), side, own)


def _degree(hit: Hit) -> str:
    if hit.share < 1.0 - MARGIN:
        bound = certain_floor(hit.case.setup)[hit.family]
        if hit.metric == "total_tok_per_s":  # counts prompts, which a prefix cache may hold
            return "schedule"
        beyond = hit.value > bound * (1.0 + MARGIN) if hit.family == "rate" else hit.value < bound * (1.0 - MARGIN)
        return "certain" if beyond else "schedule" if _whatever_order(hit, 1.0 - MARGIN) else "order"
    if hit.share < 1.0:
        return "margin" if _whatever_order(hit, 1.0) else ""
    step = _step_of(hit)
    limit = HIGH_COMPUTE_SHARE if step.compute_s > step.memory_s else HIGH_BANDWIDTH_SHARE
    return "near" if hit.share * limit < 1.0 else ""


def _whatever_order(hit: Hit, margin: float) -> bool:
    """Whether the bound holds for any order of prompts and decode steps.

    Where requests come and go, an engine chooses whether prompts make first tokens wait or the gaps between tokens:
    only the sum is bound by the schedule, and each by a step alone.
    """
    free = hit.family in ("token", "ttft") and hit.case.record.load in ("closed_loop", "burst", "open_loop")
    if not free:
        return True
    step = _step_of(hit)
    queue_s = _prompts_ahead(hit) * step.compute_s / hit.case.setup.parallel.pp if hit.family == "ttft" else 0.0
    return hit.value < margin * max(step.seconds, queue_s)


def _prompts_ahead(hit: Hit) -> float:
    """Whole prompts that one replica has to compute before a first token, on average, if all clients begin together.

    The k-th of n prompts that start at once is not done before k times the arithmetic of one, whatever the order:
    (n + 1) / 2 on average; stages of a pipeline work on several. Later requests of a closed loop need no more than
    their own, and the median may be one of those.
    """
    r, replicas = hit.case.record, hit.case.setup.parallel.dp
    requests = (r.num_requests or 0) / replicas
    if r.load == "burst":
        return requests / 2.0
    if r.load != "closed_loop" or not hit.metric.endswith("_mean") or "steady_window" in r.flag_list or not requests:
        return 1.0
    clients = min((r.concurrency or 1.0) / replicas, requests)
    return (clients * (clients + 1.0) / 2.0 + requests - clients) / requests


def _step_of(hit: Hit) -> StepNeed:
    """A step like those that set the figure: the prompt, or the sequences that run at half of their output."""
    setup = hit.case.setup
    if hit.family == "ttft" or setup.output_tok == 1:
        return prefill_step(setup)
    return decode_step(setup, _running(hit.case), setup.input_tok + setup.output_tok / 2.0)


def _running(case: Case) -> float:
    """Sequences of one replica that run at a time: as the schedule has it, else as many as may."""
    running = case.floor.get("batch_mean")
    return running / case.setup.parallel.dp if running else running_limit(case.setup)


_SEVERITY = {"certain": "fail", "schedule": "fail", "order": "warn", "margin": "warn", "near": "note"}
_CONFIDENCE = {"certain": "certain", "schedule": "likely"}  # the others: possible


def _time_finding(family: str, degree: str, hits: list[Hit], side: str, own: bool) -> Finding:
    worst, mine, near = hits[0], side == "simulated" and own, degree == "near"
    need = _step_of(worst)
    explained = () if degree in ("margin", "near") else explanations(worst)
    runs = tuple(dict.fromkeys(hit.case.id for hit in hits))
    return Finding(
        check="bounds.utilisation" if near else "bounds.time_floor",
        layer="bounds",
        fault="F3",
        also=() if near else ("F2", "F5", "F1"),
        severity=_SEVERITY[degree],
        confidence=_CONFIDENCE.get(degree, "possible"),
        runs=runs,
        metrics=tuple(dict.fromkeys(hit.metric for hit in hits)),
        says=_sentence(hits, need, "this simulator's own" if mine else side, degree, len(runs), explained),
        evidence={
            "side": side, "worst_run": worst.case.id, "metric": worst.metric, "value": worst.value,
            "schedule_floor": worst.floor, "certain_floor": certain_floor(worst.case.setup)[family],
            "share_of_bound": worst.share, "byte_per_device": need.byte,
            "bandwidth_byte_per_s": need.bandwidth_byte_per_s, "memory_s": need.memory_s, "compute_s": need.compute_s,
            "formula": BOUND[family], "explained_by": ", ".join(explained),
        },
        next="an internal error: report it with the configuration" if mine else CAUSES[family],
    )  # fmt: skip


def _sentence(hits: list[Hit], need: StepNeed, whose: str, degree: str, runs: int, explained: tuple[str, ...]) -> str:
    worst, side = hits[0], "near" if degree == "near" else "beyond"
    bound = "data-sheet bound, in the simulated order of steps, of" if degree == "order" else "data-sheet bound of"
    what = "its prompt alone" if worst.family == "ttft" or worst.case.setup.output_tok == 1 else "a decode step alone"
    low, high = hits[0].share, hits[-1].share
    shares = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
    says = (
        f"{whose} {worst.metric} of {worst.case.id} is {figure(worst.metric, worst.value)}, {side} the {bound} "
        f"{figure(worst.metric, worst.floor)} ({what} moves {need.byte / 1e9:.3g} GB per device: "
        f"{need.memory_s * 1e3:.3g} ms at {need.bandwidth_byte_per_s / 1e9:.4g} GB/s, arithmetic "
        f"{need.compute_s * 1e3:.3g} ms); {counted(runs, 'run')}, {shares} of the bound"
    )
    return f"{says}; would be possible with {' or '.join(explained)}" if explained else says


def explanations(hit: Hit) -> tuple[str, ...]:
    """Which mistakes of configuration or counting would bring the figure above its floor; by scaling one step."""
    base = _step_of(hit).seconds
    found = []
    for name, other in alternatives(hit.case.setup):
        scale = _step_of(Hit(_with_setup(hit.case, other), hit.metric, hit.value, hit.floor, hit.side)).seconds / base
        if hit.share >= scale:
            found.append(name)
    for n in (2, 4, 8):
        if hit.share * n >= 1.0:
            found.append(f"{n} times the devices")
            break
    if hit.family != "ttft" and hit.case.setup.output_tok > 1 and hit.share * MOST_TOKENS_PER_STEP >= 1.0:
        found.append(f"{1.0 / hit.share:.2g} tokens per step")
    if hit.family in ("ttft", "e2e") and hit.case.setup.input_tok > 1:
        alone = decode_step(hit.case.setup, 1, hit.case.setup.input_tok).seconds
        steps = 1 if hit.family == "ttft" else hit.case.setup.output_tok
        if hit.value >= alone * steps:
            found.append("prompts from a prefix cache")
    return tuple(found)


def _with_setup(case: Case, setup: Setup) -> Case:
    return replace(case, prediction=replace(case.prediction, setup=setup))
