"""One engine step = operators + overheads: seconds, joules, and a breakdown that sums to the total."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from simulator.batch import Batch
from simulator.cuda_graphs import ANY_SIZE, EAGER, CudaGraphs
from simulator.device import Device
from simulator.errors import UserError
from simulator.floats import Floats, on_floats
from simulator.kernels.attention import decode_attention_time, prefill_attention_time
from simulator.kernels.spec import OperatorTime
from simulator.keys import key_rules
from simulator.model import Model
from simulator.operators import AttentionWork, ForwardPlan, StateWork, plan_forward
from simulator.parallel import SINGLE, Parallelism
from simulator.precision import Precision, compute_dtype
from simulator.profile import Calibration
from simulator.roofline import compute_share, smooth_maximum
from simulator.steps import Steps, batch_sums
from simulator.token_costs import (
    COMPUTE,
    EAGER_MESSAGE,
    ENERGY_FLOP,
    MEMORY,
    MESSAGE,
    MOVED_BYTE,
    SAMPLER,
    START,
    TokenCosts,
)

# Why time passes. The breakdown of a step has exactly these keys.
CAUSES = ("memory", "compute", "attention", "launch", "communication", "host", "sampler", "power cap")
SAMPLERS = ("greedy", "full")


@dataclass(frozen=True)
class StepCost:
    """One step. `shares` maps each cause to seconds; they sum to `seconds`. Joules are of all devices."""

    seconds: float
    joules: float
    shares: dict[str, float]


@dataclass(frozen=True)
class StepCosts:
    """Many steps: arrays of shape (S,), and by cause; joules are of all devices of the instance."""

    seconds: np.ndarray
    joules: np.ndarray
    shares: dict[str, np.ndarray]


@dataclass(frozen=True)
class DecodeRun:
    """A stretch of decode steps of an unchanged set of sequences; arrays of shape (steps,), shares summed."""

    seconds: np.ndarray
    joules: np.ndarray
    shares: dict[str, float]


class _Numbers(NamedTuple):
    """What one number type brings: elementary functions, and the kernels that contexts play a part in."""

    xp: Any
    decode_attention_time: Callable[..., OperatorTime]
    prefill_attention_time: Callable[..., OperatorTime]
    smooth_maximum: Callable
    compute_share: Callable


_CONTEXT_KERNELS = (decode_attention_time, prefill_attention_time, smooth_maximum, compute_share)
_ARRAYS = _Numbers(np, *_CONTEXT_KERNELS)
_FLOATS = _Numbers(Floats, *map(on_floats, _CONTEXT_KERNELS))


class _Sum:
    """Attention and recurrent state, added up: of many steps in arrays (S,), or of one step in floats."""

    def __init__(self, steps: int | None = None) -> None:
        zeros = (0.0,) * 5 if steps is None else np.zeros((5, steps))
        self.start_s, self.compute_s, self.memory_s, self.moved_byte, self.energy_flop = zeros

    def add(self, work: _Work, count: float, where: np.ndarray | None = None) -> None:
        """Add `count` times `work`, which belongs to the steps `where` (None: to all)."""
        time = work.time
        if where is None:
            self.start_s = self.start_s + count * time.start_s
            self.compute_s = self.compute_s + count * time.compute_s
            self.memory_s = self.memory_s + count * time.memory_s
            self.moved_byte = self.moved_byte + count * work.byte
            self.energy_flop = self.energy_flop + count * work.energy_flop
            return
        self.start_s[where] += count * time.start_s
        self.compute_s[where] += count * time.compute_s
        self.memory_s[where] += count * time.memory_s
        self.moved_byte[where] += count * work.byte
        self.energy_flop[where] += count * work.energy_flop


class _Work(NamedTuple):
    """One layer's attention or recurrent state: time, bytes moved, FLOPs in terms of the energy of 16-bit ones."""

    time: OperatorTime
    byte: np.ndarray | float
    energy_flop: np.ndarray | float


class StepModel:
    """Cost of engine steps of one model, on one group of devices, in one precision, under one calibration.

    sampler: "greedy", or "full" for temperature with top-k, top-p and penalties. cuda_graphs: which steps replay a
    graph, and of what size (True: decode-only steps of any size; False: none). async_scheduling: the host prepares
    the next step while the GPU works, so that whichever is slower sets the pace.
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        precision: Precision,
        calibration: Calibration,
        sampler: str = "full",
        cuda_graphs: CudaGraphs | bool = True,
        parallel: Parallelism = SINGLE,
        async_scheduling: bool = False,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler '{sampler}', expected one of {', '.join(SAMPLERS)}")
        parallel.check(model)
        self.model, self.device, self.precision, self.calibration = model, device, precision, calibration
        self.sampler, self.parallel = sampler, parallel
        self.graphs = cuda_graphs if isinstance(cuda_graphs, CudaGraphs) else ANY_SIZE if cuda_graphs else EAGER
        self.async_scheduling = async_scheduling
        self.plan: ForwardPlan = plan_forward(model, precision, parallel)
        self.rules = key_rules(model)
        self.p = calibration.parameters
        self.idle_power_w = (
            calibration.idle_w if calibration.idle_w is not None else device.power.idle_w
        ) * parallel.world_size
        self._tokens = TokenCosts(self.plan, device, self.p, precision.base_byte, sampler == "greedy", parallel)
        peaks = device.compute.peak_flop_per_s
        self._vector_peak = peaks["fp32"]
        self._bandwidth = device.memory.bandwidth_byte_per_s * self.p.gemm16.memory_fraction
        self._attention_energy = self._tokens.relative_energy(compute_dtype(device, precision.base_activation))
        peak = peaks[compute_dtype(device, precision.base_activation)]
        self._expand_flop_per_s = peak * self.p.gemm16.compute_fraction
        self._vector_energy = self._tokens.relative_energy("fp32")

    @property
    def cuda_graphs(self) -> bool:
        """Whether any step replays a graph."""
        return self.graphs.used

    # -- public: time and energy ---------------------------------------------------------------------------

    def price(self, steps: Steps) -> StepCosts:
        """Cost of every row of `steps`."""
        whole, steps = steps, self._micro_batches(steps, np)
        tokens = np.ceil(steps.new_tok).astype(np.int64)
        piecewise, eager = self.graphs.modes(tokens, steps.prefill_tok)
        linear = self._tokens.by_tokens.rows(self.graphs.padded(tokens, eager))
        linear = linear + self._tokens.by_sampled.rows(np.ceil(steps.sampled).astype(np.int64))
        total = _Sum(len(steps))
        where = None if steps.decode_sequences.all() else np.flatnonzero(steps.decode_sequences)
        if where is None or len(where):
            some = steps if where is None else steps.take(where)
            for work in self.plan.attention:
                total.add(self._decode(work, some, some.decode_keys[:, work.rule], _ARRAYS), work.count, where)
        where = np.flatnonzero(steps.prefill_tok)
        if len(where):
            some = steps.take(where)
            for work in self.plan.attention:
                pairs, keys = some.prefill_pairs[:, work.rule], some.prefill_keys[:, work.rule]
                total.add(self._prefill(work, some, pairs, keys, _ARRAYS), work.count, where)
        for work in self.plan.states:
            total.add(self._state(work, steps, _ARRAYS), work.count)
        return self._assemble(linear.T, total, steps, whole, (piecewise, eager), np)

    def step(self, batch: Batch) -> StepCost:
        """Cost of one step: what `price` says of one row, in floats."""
        whole = Steps(*batch_sums(batch, self.rules))
        step = self._micro_batches(whole, Floats)
        tokens = math.ceil(step.new_tok)
        piecewise, eager = self.graphs.modes(tokens, step.prefill_tok, Floats)
        by_tokens = self._tokens.by_tokens.row(self.graphs.padded_one(tokens, eager))
        linear = [a + b for a, b in zip(by_tokens, self._tokens.by_sampled.row(math.ceil(step.sampled)))]
        total = _Sum()
        for work in self.plan.attention:
            if step.decode_sequences:
                total.add(self._decode(work, step, step.decode_keys[work.rule], _FLOATS), work.count)
            if step.prefill_tok:
                pairs, keys = step.prefill_pairs[work.rule], step.prefill_keys[work.rule]
                total.add(self._prefill(work, step, pairs, keys, _FLOATS), work.count)
        for work in self.plan.states:
            total.add(self._state(work, step, _FLOATS), work.count)
        costs = self._assemble(linear, total, step, whole, (piecewise, eager), Floats)
        return StepCost(costs.seconds, costs.joules, costs.shares)

    def decode_run(self, context_tok: np.ndarray, steps: int) -> DecodeRun:
        """Cost of `steps` decode steps; step j runs with contexts context_tok + j (KV tokens before the step)."""
        costs = self.price(Steps.from_decode_run(context_tok, steps, self.rules))
        shares = {cause: float(share.sum()) for cause, share in costs.shares.items()}
        return DecodeRun(costs.seconds, costs.joules, shares)

    # -- attention and recurrent state: of many steps in arrays, of one in floats -------------------------------

    def _micro_batches(self, steps: Steps, xp) -> Steps:
        """What one pipeline stage sees at a time: a share of the decoding sequences, prompts as a whole.

        pp micro-batches (no more than there are sequences) pass pp stages, so a step of all of them lasts as long as
        one micro-batch takes through the whole model.
        """
        if self.parallel.pp == 1:
            return steps
        parts = xp.clip(steps.decode_sequences, 1.0, float(self.parallel.pp))
        each = steps.decode_keys
        keys = [of_rule / parts for of_rule in each] if xp is Floats else each / parts[:, None]
        return Steps(
            steps.decode_sequences / parts, keys, steps.prefill_sequences, steps.prefill_tok,
            steps.prefill_cached_tok, steps.prefill_pairs, steps.prefill_keys,
            (steps.sampled - steps.decode_sequences) + steps.decode_sequences / parts,
        )  # fmt: skip

    def _decode(self, work: AttentionWork, steps: Steps, keys, numbers: _Numbers) -> _Work:
        n, kv, element = steps.decode_sequences, self.precision.kv_byte, self.precision.base_byte
        time = numbers.decode_attention_time(
            n, keys, q_heads=work.q_heads, kv_heads=work.kv_heads, head_dim=work.decode_head_dim, kv_byte=kv,
            kv_elements_per_tok=work.kv_elements_per_tok, flop_per_pair=work.decode_flop_per_pair,
            device=self.device, p=self.p.decode,
        )  # fmt: skip
        byte = (keys + n) * work.kv_elements_per_tok * kv + n * work.query_elements_per_tok * element
        return _Work(time, byte, keys * work.decode_flop_per_pair * self._attention_energy)

    def _prefill(self, work: AttentionWork, steps: Steps, pairs, keys, numbers: _Numbers) -> _Work:
        kv, element = self.precision.kv_byte, self.precision.base_byte
        time = numbers.prefill_attention_time(
            steps.prefill_sequences, steps.prefill_tok, pairs, keys, q_heads=work.q_heads, kv_heads=work.kv_heads,
            head_dim=work.head_dim, kv_byte=kv, kv_elements_per_tok=work.kv_elements_per_tok,
            query_elements_per_tok=work.prefill_query_elements_per_tok, flop_per_pair=work.prefill_flop_per_pair,
            device=self.device, p=self.p.prefill,
        )  # fmt: skip
        byte = (keys + steps.prefill_tok) * work.kv_elements_per_tok * kv
        byte = byte + steps.prefill_tok * work.prefill_query_elements_per_tok * element
        # Keys and values of a compressed cache are made again, by a large matrix product.
        expand_flop = steps.prefill_cached_tok * work.expand_flop_per_cached_tok
        time = OperatorTime(time.start_s, time.compute_s + expand_flop / self._expand_flop_per_s, time.memory_s)
        return _Work(time, byte, (pairs * work.prefill_flop_per_pair + expand_flop) * self._attention_energy)

    def _state(self, work: StateWork, steps: Steps, numbers: _Numbers) -> _Work:
        """Recurrent layers: state read and written once per sequence, scans on the vector units."""
        byte = 2.0 * work.state_byte_per_sequence * (steps.decode_sequences + steps.prefill_sequences)
        flop = work.flop_per_tok * steps.new_tok
        memory_s, compute_s = byte / self._bandwidth, flop / (self._vector_peak * self.p.gemm16.compute_fraction)
        exponent = self.p.gemm16.roof_exponent
        seconds = numbers.smooth_maximum(compute_s, memory_s, exponent)
        share = numbers.compute_share(compute_s, memory_s, exponent)
        time = OperatorTime(0.0 * seconds, seconds * share, seconds * (1.0 - share))
        return _Work(time, byte, flop * self._vector_energy)

    # -- assembly ---------------------------------------------------------------------------------------------

    def _assemble(self, linear, attention: _Sum, steps: Steps, whole: Steps, modes: tuple, xp) -> StepCosts:
        """Add overheads and energy; split every second by cause. `linear` is indexed by cost column.

        `steps` is what one pipeline stage sees at a time, `whole` all micro-batches; `modes`: (piecewise, eager).
        """
        engine, (piecewise, eager) = self.p.engine, modes
        message_s = xp.where(eager, linear[EAGER_MESSAGE], linear[MESSAGE])
        attention_s = attention.start_s + attention.compute_s + attention.memory_s
        gpu_s = linear[START] + linear[COMPUTE] + linear[MEMORY] + attention_s + message_s
        # Outside graphs the host launches ahead of the GPU: whichever is slower sets the pace.
        launches = xp.where(piecewise, self.plan.piecewise_launches, 0) + xp.where(eager, self.plan.launches, 0)
        launching_s = launches * engine.eager_launch_s
        waiting_s = xp.maximum(0.0, launching_s - gpu_s)
        host_s = engine.step_host_s + engine.sequence_host_s * whole.sampled
        host_s = host_s + engine.prefill_host_s * (steps.prefill_tok > 0)
        sampler_s = linear[SAMPLER]
        if self.async_scheduling:
            host_s = xp.maximum(0.0, host_s - (gpu_s + waiting_s + sampler_s))
        seconds = gpu_s + waiting_s + sampler_s + host_s
        pp = self.parallel.pp
        # Stages without a micro-batch of their own wait: short pipelines of few sequences, and prompts.
        busy = 1.0 if pp == 1 else whole.new_tok / (xp.maximum(steps.new_tok, 1e-9) * pp)
        held_s, joules = self._power(linear, attention, seconds, busy, xp)
        shares = {
            "memory": linear[MEMORY],
            "compute": linear[COMPUTE],
            "attention": attention_s,
            "launch": linear[START] + waiting_s,
            "communication": message_s,
            "host": host_s,
            "sampler": sampler_s,
            "power cap": held_s,
        }
        return StepCosts(seconds + held_s, joules, shares)

    def _power(self, linear, attention: _Sum, seconds, busy, xp) -> tuple:
        """(seconds that a power cap adds, joules of all devices).

        Kernels were measured on boards at their own limit, so their times hold what that costs. Under a lower cap a
        device lowers the clock of its cores, not of its memory: what computes takes longer, up to
        twice as long, while bytes keep their pace and cost less at the lower voltage. `busy`: share of the devices that
        have a micro-batch to work on.
        """
        power, limit_w = self.p.power, self.device.power.limit_w
        dynamic_j = power.byte_j * (linear[MOVED_BYTE] + attention.moved_byte)
        dynamic_j = dynamic_j + power.flop_j * (linear[ENERGY_FLOP] + attention.energy_flop)
        static_w = self.idle_power_w / self.parallel.world_size + power.busy_w
        room_w = limit_w - static_w
        shortest_s = dynamic_j / room_w if room_w > 0.0 else 0.0 * dynamic_j
        capped = limit_w < (self.device.power.board_limit_w or limit_w)
        held_s = xp.clip(shortest_s - seconds, 0.0, capped * (linear[COMPUTE] + attention.compute_s))
        total_s = seconds + held_s
        return held_s, xp.minimum(static_w * total_s + busy * dynamic_j, limit_w * total_s) * self.parallel.world_size
