"""One engine step = operators + overheads: seconds, joules, and a breakdown that sums to the total."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from simulator.batch import Batch
from simulator.cuda_graphs import ANY_SIZE, EAGER, CudaGraphs
from simulator.device import Device
from simulator.errors import UserError
from simulator.floats import Floats, on_floats
from simulator.flops import call_flop
from simulator.kernels.attention import decode_attention_time, prefill_attention_time
from simulator.kernels.spec import OperatorTime
from simulator.keys import key_rules
from simulator.model import Model
from simulator.operators import STREAM_PREFIX_TOK, AttentionWork, ForwardPlan, StateWork, plan_forward
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
MAX_KNOWN = 200_000  # single steps whose cost apart from attention is kept


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


class Attention(NamedTuple):
    """What attention and recurrent state add to a step: seconds, those of them in which units compute, joules."""

    seconds: Any
    compute_s: Any
    joules: Any  # above idle, of one device


class _Fixed(NamedTuple):
    """What a step costs apart from attention: by cost column, and put together."""

    linear: Any
    message_s: Any
    gpu_s: Any
    launching_s: Any
    host_s: Any
    dynamic_j: Any
    busy: Any


class _Work(NamedTuple):
    """One layer's attention or recurrent state: time, bytes moved, FLOPs in terms of the energy of 16-bit ones."""

    time: OperatorTime
    byte: np.ndarray | float
    energy_flop: np.ndarray | float


class StepModel:
    """Cost of engine steps of one model, on one group of devices, in one precision, under one calibration.

    sampler: "greedy", or "full" for temperature with top-k, top-p and penalties. cuda_graphs: which steps replay a
    graph, and of what size (True: decode-only steps of any size; False: none). async_scheduling: the host prepares
    the next step while the GPU works, so that whichever is slower sets the pace. tokens_per_decode: tokens of every
    decoding sequence that a step verifies at once (speculative decoding). micro_batch_tok: most prompt tokens that one
    pipeline stage takes at a time; further ones in the same step follow it through the stages (None: all at a time).
    streams: copies of every sequence that pass through a model with parallel scaling (ParScale, arXiv:2505.10475),
    each behind learned keys and values of its own (`STREAM_PREFIX_TOK`).
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
        tokens_per_decode: int = 1,
        micro_batch_tok: int | None = None,
        streams: int = 1,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler '{sampler}', expected one of {', '.join(SAMPLERS)}")
        parallel.check(model)
        self.model, self.device, self.precision, self.calibration = model, device, precision, calibration
        self.sampler, self.parallel = sampler, parallel
        self.graphs = cuda_graphs if isinstance(cuda_graphs, CudaGraphs) else ANY_SIZE if cuda_graphs else EAGER
        self.async_scheduling, self.tokens_per_decode = async_scheduling, tokens_per_decode
        self.micro_batch_tok, self.streams = micro_batch_tok, streams
        self.plan: ForwardPlan = plan_forward(model, precision, parallel, streams)
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
        self._static_w = self.idle_power_w / parallel.world_size + self.p.power.busy_w
        self._capped = device.power.limit_w < (device.power.board_limit_w or device.power.limit_w)
        self._known: dict[tuple, _Fixed] = {}  # of single steps
        self._mixed: dict[tuple[int, int, int], _Fixed] = {}  # the same, by arguments of `step_of_parts`

    def verifying(self, tokens_per_decode: int) -> StepModel:
        """The same, in steps that verify so many tokens of every decoding sequence."""
        return StepModel(
            self.model, self.device, self.precision, self.calibration, self.sampler, self.graphs, self.parallel,
            self.async_scheduling, tokens_per_decode, self.micro_batch_tok, self.streams,
        )  # fmt: skip

    @cached_property
    def flop(self) -> Callable[[int, int, int], float]:
        """FLOPs of one call on the model: a function of prompt, output and cached tokens, see `flops.call_flop`."""
        return call_flop(self.model, self.streams)

    @property
    def cuda_graphs(self) -> bool:
        """Whether any step replays a graph."""
        return self.graphs.used

    # -- public: time and energy ---------------------------------------------------------------------------

    def price(self, steps: Steps) -> StepCosts:
        """Cost of every row of `steps`."""
        whole, steps = steps, self._micro_batches(steps, np)
        tokens = np.ceil(self._new_tok(steps)).astype(np.int64)
        modes = self.graphs.modes(tokens, steps.prefill_tok)
        linear = self._tokens.by_tokens.rows(self.graphs.padded(tokens, modes[1]))
        linear = linear + self._tokens.by_sampled.rows(np.ceil(self._logits(steps)).astype(np.int64))
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
        busy = self._busy(steps, whole, np)
        fixed = self._fixed(linear.T, steps.prefill_tok, whole.sampled, modes, busy, np)
        return StepCosts(*self._priced(fixed, total, np))

    def step(self, batch: Batch) -> StepCost:
        """Cost of one step: what `price` says of one row, in floats."""
        if self.streams == 1:
            return self.step_of_sums(Steps(*batch_sums(batch, self.rules)), batch.further_logits_tok)
        whole = Steps(*batch_sums(batch.behind(STREAM_PREFIX_TOK), self.rules)).in_streams(self.streams)
        return self.step_of_sums(whole, batch.further_logits_tok)

    def step_of_sums(self, whole: Steps, further_logits_tok: int = 0) -> StepCost:
        """The same for a step that is given as its sums: fields of `Steps` as floats and lists by key rule.

        further_logits_tok: positions with logits besides those of sampled sequences.
        """
        step = self._micro_batches(whole, Floats)
        fixed = self._fixed_of(
            math.ceil(self._new_tok(step)), step.prefill_tok, math.ceil(self._logits(step)) + further_logits_tok,
            whole.sampled, self._busy(step, whole, Floats),
        )  # fmt: skip
        total = _Sum()
        for work in self.plan.attention:
            if step.decode_sequences:
                total.add(self._decode(work, step, step.decode_keys[work.rule], _FLOATS), work.count)
        if step.prefill_tok:
            self._add_prefill(total, step)
        for work in self.plan.states:
            total.add(self._state(work, step, _FLOATS), work.count)
        return StepCost(*self._priced(fixed, total, Floats))

    def _add_prefill(self, total: _Sum, step: Steps) -> None:
        for work in self.plan.attention:
            pairs, keys = step.prefill_pairs[work.rule], step.prefill_keys[work.rule]
            total.add(self._prefill(work, step, pairs, keys, _FLOATS), work.count)

    def decode_run(self, context_tok: np.ndarray, steps: int, growth: np.ndarray | None = None) -> DecodeRun:
        """Cost of `steps` decode steps; step j runs with contexts context_tok + j (KV tokens before the step).

        growth (sequences,): tokens that a step adds to each context, where that is not one.
        """
        if self.streams > 1:
            behind = Steps.from_decode_run(context_tok + STREAM_PREFIX_TOK, steps, self.rules, growth)
            costs = self.price(behind.in_streams(self.streams))
        else:
            costs = self.price(Steps.from_decode_run(context_tok, steps, self.rules, growth))
        shares = {cause: float(share.sum()) for cause, share in costs.shares.items()}
        return DecodeRun(costs.seconds, costs.joules, shares)

    # -- a step in parts, for tables of costs (`simulator.step_table`) -----------------------------------------

    @property
    def in_parts(self) -> bool:
        """Whether a step is tokens + sampling + attention by rule, which nothing ties before they are added."""
        return self.parallel.pp == 1 and not self.plan.states

    def decode_attention(self, sequences: float, keys: np.ndarray, rule: int) -> Attention:
        """Attention of `sequences` decoding sequences with `keys` (S,) keys in all layers of a rule; arrays (S,)."""
        total, columns = _Sum(len(keys)), np.tile(keys[:, None], (1, len(self.rules)))
        none, many = np.zeros(len(keys)), np.full(len(keys), float(sequences))
        steps = Steps(many, columns, none, none, none, 0.0 * columns, 0.0 * columns, many)
        for work in self.plan.attention:
            if work.rule == rule:
                total.add(self._decode(work, steps, keys, _ARRAYS), work.count)
        return self._attention(total)

    def prefill_attention(self, steps: Steps) -> Attention:
        """Attention of the chunks of one step, given as its sums in floats."""
        total = _Sum()
        self._add_prefill(total, steps)
        return self._attention(total)

    def _attention(self, total: _Sum) -> Attention:
        power = self.p.power
        joules = power.byte_j * total.moved_byte + power.flop_j * total.energy_flop
        return Attention(total.start_s + total.compute_s + total.memory_s, total.compute_s, joules)

    def step_of_parts(
        self, sequences: int, prefill_tok: int, completes: int, attention: tuple[float, float, float]
    ) -> tuple[float, float]:
        """(seconds, joules) of one step whose attention (`Attention`) is known already.

        It decodes `sequences` sequences and computes prefill_tok prompt tokens, which complete `completes` prompts.
        """
        fixed = self._mixed.get((sequences, prefill_tok, completes))
        if fixed is None:
            if len(self._mixed) >= MAX_KNOWN:
                self._mixed.clear()
            verified = sequences * self.tokens_per_decode
            fixed = self._fixed_of(verified + prefill_tok, prefill_tok, verified + completes, sequences + completes)
            self._mixed[sequences, prefill_tok, completes] = fixed
        return self._times(fixed, attention, Floats)[:2]

    def _new_tok(self, steps: Steps):
        """Tokens that pass through the linear layers."""
        return steps.decode_sequences * self.tokens_per_decode + steps.prefill_tok

    def _logits(self, steps: Steps):
        """Positions at which logits are computed and a token is sampled."""
        return steps.sampled + steps.decode_sequences * (self.tokens_per_decode - 1)

    # -- attention and recurrent state: of many steps in arrays, of one in floats -------------------------------

    def _micro_batches(self, steps: Steps, xp) -> Steps:
        """What one pipeline stage sees at a time: a share of the decoding sequences and of the prompts.

        pp micro-batches pass pp stages, so a step of all of them lasts as long as one micro-batch takes through the
        whole model. There are no more of them than decoding sequences, nor, of prompts, than `micro_batch_tok` makes.
        """
        pp = float(self.parallel.pp)
        if pp == 1.0:
            return steps
        parts, of_prompts = xp.clip(steps.decode_sequences, 1.0, pp), 1.0
        if self.micro_batch_tok is not None:
            of_prompts = xp.clip(xp.ceil(steps.prefill_tok / self.micro_batch_tok), 1.0, pp)

        def shared(by_rule, among):
            """Of every key rule."""
            if xp is Floats:
                return [of_rule / among for of_rule in by_rule]
            return by_rule / np.broadcast_to(among, steps.prefill_tok.shape)[:, None]

        decode, completing = steps.decode_sequences / parts, (steps.sampled - steps.decode_sequences) / of_prompts
        return Steps(
            decode, shared(steps.decode_keys, parts), steps.prefill_sequences / of_prompts,
            steps.prefill_tok / of_prompts, steps.prefill_cached_tok / of_prompts,
            shared(steps.prefill_pairs, of_prompts), shared(steps.prefill_keys, of_prompts), completing + decode,
        )  # fmt: skip

    def _decode(self, work: AttentionWork, steps: Steps, keys, numbers: _Numbers) -> _Work:
        n, kv, element = steps.decode_sequences, self.precision.kv_byte, self.precision.base_byte
        # Tokens that are verified together share a read of the cache, like the query heads of one KV head.
        queries = self.tokens_per_decode
        flop_per_pair = work.decode_flop_per_pair * queries
        time = numbers.decode_attention_time(
            n, keys, q_heads=work.q_heads * queries, kv_heads=work.kv_heads, head_dim=work.decode_head_dim, kv_byte=kv,
            kv_elements_per_tok=work.kv_elements_per_tok, flop_per_pair=flop_per_pair, device=self.device,
            p=self.p.decode,
        )  # fmt: skip
        byte = (keys + n * queries) * work.kv_elements_per_tok * kv
        byte = byte + n * queries * work.query_elements_per_tok * element
        return _Work(time, byte, keys * flop_per_pair * self._attention_energy)

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
        flop = work.flop_per_tok * self._new_tok(steps)
        memory_s, compute_s = byte / self._bandwidth, flop / (self._vector_peak * self.p.gemm16.compute_fraction)
        exponent = self.p.gemm16.roof_exponent
        seconds = numbers.smooth_maximum(compute_s, memory_s, exponent)
        share = numbers.compute_share(compute_s, memory_s, exponent)
        time = OperatorTime(0.0 * seconds, seconds * share, seconds * (1.0 - share))
        return _Work(time, byte, flop * self._vector_energy)

    # -- assembly ---------------------------------------------------------------------------------------------

    def _busy(self, steps: Steps, whole: Steps, xp):
        """Share of the devices that have a micro-batch to work on; `steps` is what one pipeline stage sees at a time.

        Stages without one wait: short pipelines of few sequences, and prompts.
        """
        pp = self.parallel.pp
        return 1.0 if pp == 1 else whole.new_tok / (xp.maximum(steps.new_tok, 1e-9) * pp)

    def _fixed(self, linear, prefill_tok, sampled, modes: tuple, busy, xp) -> _Fixed:
        """What the contexts have no part in. `linear` is indexed by cost column; `modes`: (piecewise, eager)."""
        engine, (piecewise, eager) = self.p.engine, modes
        message_s = xp.where(eager, linear[EAGER_MESSAGE], linear[MESSAGE])
        # Outside graphs the host launches ahead of the GPU: whichever is slower sets the pace.
        launches = xp.where(piecewise, self.plan.piecewise_launches, 0) + xp.where(eager, self.plan.launches, 0)
        host_s = engine.step_host_s + engine.sequence_host_s * sampled + engine.prefill_host_s * (prefill_tok > 0)
        gpu_s = linear[START] + linear[COMPUTE] + linear[MEMORY] + message_s
        dynamic_j = self.p.power.byte_j * linear[MOVED_BYTE] + self.p.power.flop_j * linear[ENERGY_FLOP]
        return _Fixed(linear, message_s, gpu_s, launches * engine.eager_launch_s, host_s, dynamic_j, busy)

    def _fixed_of(self, tokens: int, prefill_tok: float, logits: int, sampled: float, busy: float = 1.0) -> _Fixed:
        """`_fixed` of one step, by its tokens, logits and sequences sampled."""
        key = (tokens, prefill_tok > 0, logits, sampled, busy)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            modes = self.graphs.modes(tokens, prefill_tok, Floats)
            by_tokens = self._tokens.by_tokens.row(self.graphs.padded_one(tokens, modes[1]))
            linear = [a + b for a, b in zip(by_tokens, self._tokens.by_sampled.row(logits))]
            found = self._known[key] = self._fixed(linear, prefill_tok, sampled, modes, busy, Floats)
        return found

    def _priced(self, fixed: _Fixed, total: _Sum, xp) -> tuple:
        """(seconds, joules, seconds by cause): every second split by cause."""
        attention = self._attention(total)
        seconds, joules, waiting_s, host_s, held_s = self._times(fixed, attention, xp)
        linear = fixed.linear
        shares = {
            "memory": linear[MEMORY],
            "compute": linear[COMPUTE],
            "attention": attention.seconds,
            "launch": linear[START] + waiting_s,
            "communication": fixed.message_s,
            "host": host_s,
            "sampler": linear[SAMPLER],
            "power cap": held_s,
        }
        return seconds, joules, shares

    def _times(self, fixed: _Fixed, attention: tuple, xp) -> tuple:
        """(seconds, joules, and of the seconds: waiting for launches, host, held by a power cap)."""
        attention_s, compute_s, attention_j = attention
        gpu_s = fixed.gpu_s + attention_s
        waiting_s = xp.maximum(0.0, fixed.launching_s - gpu_s)
        working_s = gpu_s + waiting_s + fixed.linear[SAMPLER]
        host_s = xp.maximum(0.0, fixed.host_s - working_s) if self.async_scheduling else fixed.host_s
        seconds, dynamic_j = working_s + host_s, fixed.dynamic_j + attention_j
        held_s = 0.0 * seconds
        if self._capped:
            held_s = self._held(seconds, dynamic_j, fixed.linear[COMPUTE] + compute_s, xp)
        total_s = seconds + held_s
        joules = xp.minimum(self._static_w * total_s + fixed.busy * dynamic_j, self.device.power.limit_w * total_s)
        return total_s, joules * self.parallel.world_size, waiting_s, host_s, held_s

    def _held(self, seconds, dynamic_j, compute_s, xp):
        """Seconds that a power cap adds.

        Kernels were measured on boards at their own limit, so their times hold what that costs. Under a lower cap a
        device lowers the clock of its cores, not of its memory: what computes takes longer, up to twice as long, while
        bytes keep their pace and cost less at the lower voltage.
        """
        room_w = self.device.power.limit_w - self._static_w
        shortest_s = dynamic_j / room_w if room_w > 0.0 else 0.0 * dynamic_j
        return xp.clip(shortest_s - seconds, 0.0, compute_s)
