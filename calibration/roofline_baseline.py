"""The plain data-sheet roofline of a run: what a calculation with two data-sheet figures would have said.

It moves the same bytes and does the same FLOPs as the simulator, but nothing else: full bandwidth, full peak, perfect
overlap, no launch, host, sampling or communication. It says nothing of power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.setup import Setup
from calibration.trajectory import Trajectory
from calibration.trajectory_metrics import metrics
from simulator.device import Device
from simulator.kernels.moe import touched_experts
from simulator.keys import KeyRule, key_rules
from simulator.operators import ExpertWork, ForwardPlan, plan_forward
from simulator.parallel import Parallelism
from simulator.precision import Precision, compute_dtype
from simulator.steps import Steps

EXPERT_ACTIVATION_BYTE = 2.0  # routed tokens pass between the products of an expert in 16 bit


@dataclass(frozen=True)
class RooflinePrice:
    """Seconds of each step, shape (S,); the joules are not known and stand as zeros for whoever needs an array."""

    seconds: np.ndarray
    joules: np.ndarray


class PlainRoofline:
    """Physics of one deployment: each step lasts max(bytes / bandwidth, sum over types of FLOPs / peak) of one device.

    Has `price` and `rules` as `StepModel` has, so that runs with arrivals in real time can be replayed with it.
    """

    def __init__(
        self, plan: ForwardPlan, device: Device, precision: Precision, parallel: Parallelism,
        rules: Sequence[KeyRule] = (),
    ) -> None:  # fmt: skip
        self.plan, self.device, self.precision, self.parallel, self.rules = plan, device, precision, parallel, rules

    @classmethod
    def of(cls, setup: Setup) -> PlainRoofline:
        """The roofline of a run's deployment."""
        plan = plan_forward(setup.model, setup.precision, setup.parallel)
        return cls(plan, setup.device, setup.precision, setup.parallel, key_rules(setup.model))

    def price(self, steps: Steps) -> RooflinePrice:
        """Seconds of every row of `steps`."""
        steps = _micro_batches(steps, self.parallel.pp)
        work = _Work(self.device, len(steps))
        self._add_gemms(work, steps)
        for experts in self.plan.experts:
            self._add_experts(work, experts, steps.new_tok)
        self._add_attention(work, steps)
        self._add_states(work, steps)
        work.byte += self.plan.elementwise_byte_per_tok * steps.new_tok
        seconds = np.maximum(work.byte / self.device.memory.bandwidth_byte_per_s, work.compute_s)
        return RooflinePrice(seconds, np.zeros_like(seconds))

    def _add_gemms(self, work: _Work, steps: Steps) -> None:
        element = self.precision.base_byte
        for gemm in self.plan.gemms:
            rows = steps.new_tok if gemm.rows == "tokens" else steps.sampled
            weights = gemm.in_features * gemm.out_features
            moved = weights * gemm.weight_byte * (rows > 0) + rows * (gemm.in_features + gemm.out_features) * element
            work.add(gemm.count * moved, gemm.count * 2.0 * rows * weights, gemm.activation)

    def _add_experts(self, work: _Work, experts: ExpertWork, tokens: np.ndarray) -> None:
        """Expected touched experts, every token choosing at random, in equal shares of the devices that hold them."""
        if self.parallel.shared_experts:
            tokens = tokens * self.parallel.dp
        share = self.parallel.expert_tp * self.parallel.ep
        weights = experts.hidden * experts.intermediate * (3.0 if experts.gated else 2.0)
        routed = tokens * experts.experts_per_token
        touched = touched_experts(experts.experts, experts.experts_per_token, tokens)
        passed = routed * (2.0 * experts.hidden + 3.0 * experts.intermediate) * EXPERT_ACTIVATION_BYTE
        count = experts.count / share
        work.add(
            count * (touched * weights * experts.weight_byte + passed), count * 2.0 * routed * weights,
            experts.activation,
        )  # fmt: skip

    def _add_attention(self, work: _Work, steps: Steps) -> None:
        kv, element, dtype = self.precision.kv_byte, self.precision.base_byte, self.precision.base_activation
        for a in self.plan.attention:
            cache = a.count * a.kv_elements_per_tok * kv  # bytes per key read or token written
            n, keys = steps.decode_sequences, steps.decode_keys[:, a.rule]
            moved = cache * (keys + n) + a.count * n * a.query_elements_per_tok * element
            work.add(moved, a.count * keys * a.decode_flop_per_pair, dtype)
            n, keys = steps.prefill_tok, steps.prefill_keys[:, a.rule]
            moved = cache * (keys + n) + a.count * n * a.prefill_query_elements_per_tok * element
            flop = steps.prefill_pairs[:, a.rule] * a.prefill_flop_per_pair
            flop = flop + steps.prefill_cached_tok * a.expand_flop_per_cached_tok
            work.add(moved, a.count * flop, dtype)

    def _add_states(self, work: _Work, steps: Steps) -> None:
        """Recurrent state is read and written once per sequence; scans run on the vector units."""
        sequences = steps.decode_sequences + steps.prefill_sequences
        for state in self.plan.states:
            moved = 2.0 * state.count * state.state_byte_per_sequence * sequences
            work.add(moved, state.count * state.flop_per_tok * steps.new_tok, "fp32")


class _Work:
    """Bytes, and seconds of arithmetic at data-sheet peaks, of one device: arrays of shape (S,)."""

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self.byte, self.compute_s = np.zeros((2, size))

    def add(self, byte: np.ndarray, flop: np.ndarray, activation: str) -> None:
        peak = self._device.compute.peak_flop_per_s[compute_dtype(self._device, activation)]
        self.byte += byte
        self.compute_s += flop / peak


def _micro_batches(steps: Steps, pp: int) -> Steps:
    """With pp stages: one micro-batch, whose way through the whole model lasts as long as one step of all of them."""
    if pp == 1:
        return steps
    n = steps.decode_sequences / pp
    return Steps(
        n, steps.decode_keys / pp, steps.prefill_sequences, steps.prefill_tok, steps.prefill_cached_tok,
        steps.prefill_pairs, steps.prefill_keys, (steps.sampled - steps.decode_sequences) + n,
    )  # fmt: skip


def roofline_metrics(setup: Setup, trajectory: Trajectory) -> dict[str, float]:
    """Metrics of a scheduled run under the plain roofline, by the schema's column names; none of power or energy."""
    return metrics(trajectory, PlainRoofline.of(setup).price(trajectory.steps).seconds)
