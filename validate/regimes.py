"""What a run's time should be made of, by arithmetic: the regime by which errors are grouped. No calibration enters.

launch, memory, compute, communication: the largest part of a typical step at data-sheet rates, or none of them.
KV-saturated: the cache, not a limit on sequences, sets how many run. overload: requests wait for others to finish.
"""

from __future__ import annotations

import msgspec
import numpy as np

from calibration.roofline_baseline import PlainRoofline
from calibration.setup import Setup, kv_may_bind
from simulator.batch import Batch, PrefillChunk
from simulator.device import Device
from simulator.steps import Steps
from validate.cases import Case

REGIMES = ("launch", "memory", "compute", "communication", "KV-saturated", "overload")
# Where bytes, operations and messages explain less than this share of the predicted time, something else sets the pace.
EXPLAINED = 1 / 3
MESSAGE_S = 5e-6  # of a short collective in a CUDA graph: the order of the measured tables (calibration/data/kernels)
OVERLOADED = 0.8  # of the offered tokens per second: less is delivered, the queue grows
SHORT_OUTPUT_TOK = 16  # a run that writes less is a prompt


def phase_of(metric: str, output_tok: float | None) -> str:
    """ "prefill" or "decode": where the time that a metric speaks of is spent."""
    if metric.startswith("ttft"):
        return "prefill"
    per_token = metric.startswith(("tpot", "itl"))
    return "decode" if per_token or (output_tok or 0.0) >= SHORT_OUTPUT_TOK else "prefill"


class Regimes:
    """Regimes of cases; deployments and steps that runs share are priced once."""

    def __init__(self) -> None:
        self._physics: dict[tuple, tuple[PlainRoofline, PlainRoofline]] = {}
        self._parts: dict[tuple, tuple[float, float, float]] = {}

    def of(self, case: Case, metric: str) -> str:
        """One of REGIMES, or "unknown" for a run that cannot be simulated."""
        setup = case.setup
        if setup is None:
            return "unknown"
        phase = phase_of(metric, case.record.output_tok)
        if _overloaded(case, setup, metric):
            return "overload"
        if phase == "decode" and kv_may_bind(setup):
            return "KV-saturated"
        memory, compute, communication = self._of_step(setup, phase)
        work = max(memory, compute)
        if communication > work:
            return "communication"
        floor, expected = (figures.get(metric) for figures in (case.floor, case.prediction.outcome.values))
        known = floor and expected and not metric.startswith(("output", "total"))
        if known and floor / expected * (1.0 + communication / work) < EXPLAINED:
            return "launch"
        return "memory" if memory >= compute else "compute"

    def _of_step(self, setup: Setup, phase: str) -> tuple[float, float, float]:
        """Seconds of (memory, compute, communication) of a typical step of one replica."""
        running = max(1, round(min(setup.batch, setup.settings.max_num_seqs * setup.parallel.dp) / setup.parallel.dp))
        key = (setup.deployment, phase, running if phase == "decode" else 0, setup.input_tok, setup.output_tok)
        if key not in self._parts:
            plain, unbound = self._pair(setup)
            if phase == "prefill":
                batch = Batch(prefill=(PrefillChunk(setup.input_tok, 0),))
            else:
                batch = Batch(decode_context_tok=np.full(running, setup.input_tok + setup.output_tok // 2))
            steps = Steps.from_batches([batch], plain.rules)
            both, compute = (float(physics.price(steps).seconds[0]) for physics in (plain, unbound))
            # The larger of both is known, and compute alone: memory is the larger, or less than compute.
            memory = both if both > compute else 0.0
            self._parts[key] = memory, compute, _communication_s(plain, setup.device, batch.new_tok)
        return self._parts[key]

    def _pair(self, setup: Setup) -> tuple[PlainRoofline, PlainRoofline]:
        """(roofline, the same with a memory that costs no time) of a deployment."""
        if setup.deployment not in self._physics:
            plain = PlainRoofline.of(setup)
            memory = msgspec.structs.replace(plain.device.memory, bandwidth_byte_per_s=1e30)
            device = msgspec.structs.replace(plain.device, memory=memory)
            unbound = PlainRoofline(plain.plan, device, plain.precision, plain.parallel, plain.rules)
            self._physics[setup.deployment] = plain, unbound
        return self._physics[setup.deployment]


def _communication_s(physics: PlainRoofline, device: Device, tokens: int) -> float:
    """Collectives of one step: 2 (n - 1) / n of an all-reduce's bytes over the link (half for the others), and a start.

    A device without a link of its own sends over PCIe; without any on its sheet only the start is known.
    """
    link = device.interconnect.scale_up_byte_per_s or device.interconnect.pcie_byte_per_s or float("inf")
    seconds = 0.0
    for message in physics.plan.messages:
        n = message.world_size
        passes = (2.0 if message.kind == "all_reduce" else 1.0) * (n - 1) / n
        seconds += message.count * (MESSAGE_S + passes * message.byte_per_tok * tokens / link)
    return seconds


def _overloaded(case: Case, setup: Setup, metric: str) -> bool:
    """Requests wait for others to finish: first tokens and whole requests only, gaps between tokens do not see it."""
    record = case.record
    if record.load == "open_loop":
        offered = (record.request_rate_rps or 0.0) * setup.output_tok
        return case.prediction.outcome.values.get("output_tok_per_s", offered) < OVERLOADED * offered
    waits = record.load in ("closed_loop", "burst") and metric.startswith(("ttft", "e2e"))
    asked = record.num_requests if record.load == "burst" else record.concurrency
    return waits and (asked or 0) > setup.settings.max_num_seqs * setup.parallel.dp
