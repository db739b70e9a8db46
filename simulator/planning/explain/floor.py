"""What the data sheet alone would make of engine steps: bytes / bandwidth and FLOPs / peak, with nothing lost.

The bytes and FLOPs are those that the operators need (Williams et al. 2009): full bandwidth, full peak, no launch, no
host, no sampler, no message, no row or tile padded. Whichever of the two takes longer is the roofline of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.kernels.moe import touched_experts
from simulator.precision import compute_dtype
from simulator.step import StepModel
from simulator.steps import Steps

EXPERT_ACTIVATION_BYTE = 2.0  # routed tokens pass between the products of an expert in 16 bit


@dataclass(frozen=True)
class Floor:
    """Seconds of each step, arrays (S,), at the rates of the data sheet: of attention, and of all else (`linear`)."""

    linear_memory_s: np.ndarray
    linear_compute_s: np.ndarray
    attention_memory_s: np.ndarray
    attention_compute_s: np.ndarray

    @property
    def memory_bound(self) -> np.ndarray:
        """(S,) bool: the bytes of the whole step take longer than its FLOPs."""
        memory_s = self.linear_memory_s + self.attention_memory_s
        return memory_s >= self.linear_compute_s + self.attention_compute_s

    @property
    def seconds(self) -> np.ndarray:
        """(S,) the roofline."""
        memory_s = self.linear_memory_s + self.attention_memory_s
        return np.maximum(memory_s, self.linear_compute_s + self.attention_compute_s)


class _Work:
    """Bytes, and seconds of arithmetic at the peaks, of one device: arrays (S,)."""

    def __init__(self, model: StepModel, size: int) -> None:
        self._device = model.device
        self.byte, self.compute_s = np.zeros((2, size))

    def add(self, byte: np.ndarray, flop: np.ndarray, activation: str) -> None:
        self.byte += byte
        self.compute_s += flop / self._device.compute.peak_flop_per_s[compute_dtype(self._device, activation)]

    @property
    def memory_s(self) -> np.ndarray:
        return self.byte / self._device.memory.bandwidth_byte_per_s


def floor_of(model: StepModel, steps: Steps, further_logits_tok: float = 0.0) -> Floor:
    """The roofline of every row of `steps` on one device of the model's group.

    further_logits_tok: positions with logits besides those of sampled sequences. With pipeline stages: of one
    micro-batch on its way through all of them, which is how long a step of all micro-batches lasts.
    """
    steps = model._micro_batches(steps, np)  # the engine's rule, which must not exist twice
    linear, attention = _Work(model, len(steps)), _Work(model, len(steps))
    verified = steps.decode_sequences * model.tokens_per_decode
    tokens = verified + steps.prefill_tok
    logits = steps.sampled + (verified - steps.decode_sequences) + further_logits_tok
    _add_products(linear, model, tokens, logits)
    _add_experts(linear, model, tokens)
    linear.byte += model.plan.elementwise_byte_per_tok * tokens
    _add_attention(attention, model, steps, verified)
    for state in model.plan.states:  # recurrent state is read and written once per sequence
        sequences = steps.decode_sequences + steps.prefill_sequences
        moved = 2.0 * state.count * state.state_byte_per_sequence * sequences
        attention.add(moved, state.count * state.flop_per_tok * tokens, "fp32")
    return Floor(linear.memory_s, linear.compute_s, attention.memory_s, attention.compute_s)


def _add_products(work: _Work, model: StepModel, tokens: np.ndarray, logits: np.ndarray) -> None:
    element = model.precision.base_byte
    for gemm in model.plan.gemms:
        rows = tokens if gemm.rows == "tokens" else logits
        weights = gemm.in_features * gemm.out_features
        moved = weights * gemm.weight_byte * (rows > 0) + rows * (gemm.in_features + gemm.out_features) * element
        work.add(gemm.count * moved, gemm.count * 2.0 * rows * weights, gemm.activation)


def _add_experts(work: _Work, model: StepModel, tokens: np.ndarray) -> None:
    """Expected touched experts under the calibration's popularity, in equal shares of the devices that hold them."""
    parallel, skew = model.parallel, model.p.engine.routing_skew
    if parallel.shared_experts:
        tokens = tokens * parallel.dp
    for experts in model.plan.experts:
        weights = experts.hidden * experts.intermediate * (3.0 if experts.gated else 2.0)
        routed = tokens * experts.experts_per_token
        touched = touched_experts(experts.experts, experts.experts_per_token, tokens, skew)
        passed = routed * (2.0 * experts.hidden + 3.0 * experts.intermediate) * EXPERT_ACTIVATION_BYTE
        count = experts.count / (parallel.expert_tp * parallel.ep)
        moved = touched * weights * experts.weight_byte + passed
        work.add(count * moved, count * 2.0 * routed * weights, experts.activation)


def _add_attention(work: _Work, model: StepModel, steps: Steps, verified: np.ndarray) -> None:
    kv, element, dtype = model.precision.kv_byte, model.precision.base_byte, model.precision.base_activation
    for a in model.plan.attention:
        cache = a.count * a.kv_elements_per_tok * kv  # bytes per key read or token written
        keys = steps.decode_keys[:, a.rule]
        moved = cache * (keys + verified) + a.count * verified * a.query_elements_per_tok * element
        work.add(moved, a.count * keys * a.decode_flop_per_pair * model.tokens_per_decode, dtype)
        n, keys = steps.prefill_tok, steps.prefill_keys[:, a.rule]
        moved = cache * (keys + n) + a.count * n * a.prefill_query_elements_per_tok * element
        flop = steps.prefill_pairs[:, a.rule] * a.prefill_flop_per_pair
        flop = flop + steps.prefill_cached_tok * a.expand_flop_per_cached_tok
        work.add(moved, a.count * flop, dtype)
