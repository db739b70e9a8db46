"""Every second and every joule of engine steps, split: by cause, from the data sheet's roofline up, by consumer."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from simulator.batch import Batch
from simulator.operators import STREAM_PREFIX_TOK
from simulator.parameters import with_values
from simulator.planning.explain.floor import Floor, floor_of
from simulator.step import CAUSES, StepCost, StepCosts, StepModel
from simulator.steps import Steps, batch_sums

# From the data sheet's roofline up to what a step takes: these sum to it.
ROOFLINE, BANDWIDTH, COMPUTE, ATTENTION = "roofline", "bandwidth", "compute", "attention"
STEP_PARTS = (
    ROOFLINE, BANDWIDTH, COMPUTE, ATTENTION, "launch", "communication", "host", "sampler", "power cap",
)  # fmt: skip
CONSUMERS = ("idle", "busy", "bytes", "flops")  # of joules
PROMPTS, DECODE = "prompts", "decode"  # steps that compute prompts (or full passes), and those that only decode
PHASES = (PROMPTS, DECODE)
Values = np.ndarray | float


@dataclass(frozen=True)
class StepAccount:
    """Of one step (floats) or many (arrays (S,)): seconds by cause and by part, joules by consumer."""

    causes: dict[str, Values]  # CAUSES; sums to the seconds
    parts: dict[str, Values]  # STEP_PARTS; sums to the seconds
    joules: dict[str, Values]  # CONSUMERS; sums to the joules


class Meter:
    """Prices steps as `model` does, and says what for."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        # What moves bytes and what computes draw by themselves: the same physics with nothing else to pay for.
        self._bytes, self._flops = (_only(model, zero) for zero in ("power.flop_j", "power.byte_j"))

    def of_steps(self, steps: Steps) -> tuple[StepCosts, StepAccount]:
        """Every row of `steps` (those of parallel streams included)."""
        costs = self.model.price(steps)
        joules = self._bytes.price(steps).joules, self._flops.price(steps).joules
        return costs, self._account(costs, floor_of(self.model, steps), joules)

    def of_batch(self, batch: Batch) -> tuple[StepCost, StepAccount]:
        """One step, in floats."""
        cost = self.model.step(batch)
        joules = self._bytes.step(batch).joules, self._flops.step(batch).joules
        behind = batch if self.model.streams == 1 else batch.behind(STREAM_PREFIX_TOK)
        row = Steps(*(np.array([value], dtype=float) for value in batch_sums(behind, self.model.rules)))
        row = row if self.model.streams == 1 else row.in_streams(self.model.streams)
        return cost, self._account(cost, floor_of(self.model, row, batch.further_logits_tok), joules)

    def _account(self, cost: StepCost | StepCosts, floor: Floor, dynamic_j: tuple[Values, Values]) -> StepAccount:
        return StepAccount(
            causes=dict(cost.shares),
            parts=_parts(cost.shares, floor),
            joules=self._joules(cost, *dynamic_j),
        )

    def _joules(self, cost: StepCost | StepCosts, bytes_j: Values, flops_j: Values) -> dict[str, Values]:
        """By consumer; where the power limit clips, what moves and what computes give way alike."""
        model = self.model
        idle = model.idle_power_w * cost.seconds
        busy = model.p.power.busy_w * model.parallel.world_size * cost.seconds
        dynamic, both = cost.joules - idle - busy, bytes_j + flops_j
        moved = dynamic * bytes_j / np.where(both > 0.0, both, 1.0)
        return {"idle": idle, "busy": busy, "bytes": moved, "flops": dynamic - moved}


def _only(model: StepModel, zero: str) -> StepModel:
    """`model` without any power but that of bytes or of FLOPs, and without a limit to it."""
    parameters = with_values(model.p, {"power.busy_w": 0.0, zero: 0.0})
    calibration = msgspec.structs.replace(model.calibration, parameters=parameters, idle_w=0.0)
    power = msgspec.structs.replace(model.device.power, limit_w=1e30, board_limit_w=None)
    return rebuilt(model, msgspec.structs.replace(model.device, power=power), calibration)


def rebuilt(model: StepModel, device, calibration) -> StepModel:
    """The same deployment on another device or under another calibration."""
    return StepModel(
        model.model, device, model.precision, calibration, model.sampler, model.graphs, model.parallel,
        model.async_scheduling, model.tokens_per_decode, model.micro_batch_tok, model.streams,
    )  # fmt: skip


def _parts(shares: dict[str, Values], floor: Floor) -> dict[str, Values]:
    """From the roofline up. In a step whose roof is memory, what is laid to compute is lost, and the other way round.

    Products that hide some of their bytes behind arithmetic can make "bandwidth" negative by itself; then both are
    told together as compute.
    """
    memory_s, compute_s, attention_s = (_array(shares[name]) for name in ("memory", "compute", "attention"))
    linear_s = np.where(floor.memory_bound, floor.linear_memory_s, floor.linear_compute_s)
    own_s = np.where(floor.memory_bound, floor.attention_memory_s, floor.attention_compute_s)
    lost_s = memory_s + compute_s - linear_s
    bandwidth_s = np.clip(memory_s - np.where(floor.memory_bound, linear_s, 0.0), 0.0, np.maximum(lost_s, 0.0))
    found = {
        ROOFLINE: linear_s + own_s,
        BANDWIDTH: bandwidth_s,
        COMPUTE: lost_s - bandwidth_s,
        ATTENTION: attention_s - own_s,
    }
    scalar = np.ndim(shares["memory"]) == 0
    kernels = {name: float(values[0]) if scalar else values for name, values in found.items()}
    return kernels | {name: shares[name] for name in STEP_PARTS if name not in kernels}


def _array(value: Values) -> np.ndarray:
    return np.atleast_1d(np.asarray(value, dtype=float))


def largest(values: dict[str, float]) -> list[tuple[str, float]]:
    """(name, value) from the largest down; of equal ones in the order given."""
    return sorted(values.items(), key=lambda item: -item[1])


__all__ = ["CAUSES", "CONSUMERS", "DECODE", "PHASES", "PROMPTS", "STEP_PARTS", "Meter", "StepAccount", "rebuilt"]
