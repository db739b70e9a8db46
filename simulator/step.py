"""One engine step: operators + overheads -> seconds, joules and a breakdown that sums to the total."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.batch import Batch
from simulator.device import Device
from simulator.errors import UserError
from simulator.model import Model
from simulator.operators import ForwardPlan, Gemm, plan_forward, touched_experts
from simulator.precision import Precision, compute_dtype
from simulator.profile import Calibration
from simulator.roofline import compute_share, padded_work, reread_byte, smooth_maximum

# Why time passes. The breakdown of a step has exactly these keys.
CAUSES = ("memory", "compute", "attention", "launch", "host", "sampler", "power cap")
SAMPLERS = ("greedy", "full")
# Passes over batch x vocabulary by a greedy sampler: cast to fp32, read for the maximum, log-probability of it.
_GREEDY_PASSES = 3.0
_LOGIT_BYTE = 4.0  # logits are sampled in fp32


@dataclass(frozen=True)
class StepCost:
    """One step. `shares` maps each cause to seconds; they sum to `seconds`."""

    seconds: float
    joules: float
    shares: dict[str, float]


@dataclass(frozen=True)
class DecodeRun:
    """A stretch of decode steps of an unchanged set of sequences; arrays of shape (steps,), shares summed."""

    seconds: np.ndarray
    joules: np.ndarray
    shares: dict[str, float]


@dataclass(frozen=True)
class _Linear:
    """Everything in a step that does not depend on the length of contexts. Seconds, bytes, 16-bit FLOP equivalents."""

    memory_s: float
    compute_s: float
    sampler_s: float
    moved_byte: float
    energy_flop: float


@dataclass(frozen=True)
class _Attention:
    """Attention and recurrent state of a step or of a run of steps; arrays broadcast over steps."""

    seconds: np.ndarray
    compute_s: np.ndarray  # the part of `seconds` laid to arithmetic
    moved_byte: np.ndarray
    energy_flop: np.ndarray


class StepModel:
    """Cost of engine steps of one model, on one device, in one precision, under one calibration.

    sampler: "greedy", or "full" for temperature with top-k, top-p and penalties. cuda_graphs: decode-only steps
    replay a graph; steps with prefill are always launched kernel by kernel.
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        precision: Precision,
        calibration: Calibration,
        sampler: str = "full",
        cuda_graphs: bool = True,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler '{sampler}', expected one of {', '.join(SAMPLERS)}")
        self.model, self.device, self.precision, self.calibration = model, device, precision, calibration
        self.sampler, self.cuda_graphs = sampler, cuda_graphs
        self.plan: ForwardPlan = plan_forward(model, precision)
        self.p = calibration.parameters
        self.idle_power_w = calibration.idle_w if calibration.idle_w is not None else device.power.idle_w
        self._linear_cache: dict[tuple[int, int], _Linear] = {}
        peaks = device.compute.peak_flop_per_s
        self._base_dtype = compute_dtype(device, precision.base)
        self._quantised_dtype = compute_dtype(device, precision.activations)
        self._attention_peak = peaks[self._base_dtype] * self.p.attention_compute_fraction
        self._vector_peak = peaks["fp32"]
        self._bandwidth = device.memory.bandwidth_byte_per_s

    # -- public: time and energy ---------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepCost:
        """Cost of one step. A batch with prefill runs outside CUDA graphs."""
        linear = self._linear(batch.new_tok, batch.sampled_sequences)
        parts = []
        if len(batch.decode_context_tok):
            parts.append(self._decode_attention(batch.decode_context_tok, 1))
        if batch.prefill:
            parts.append(self._prefill_attention(batch))
        attention = _Attention(
            *(sum((getattr(a, name) for a in parts), np.zeros(1)) for name in _Attention.__dataclass_fields__)
        )
        graph = self.cuda_graphs and not batch.prefill
        run = self._assemble(linear, attention, graph, batch.sampled_sequences)
        return StepCost(float(run.seconds[0]), float(run.joules[0]), run.shares)

    def decode_run(self, context_tok: np.ndarray, steps: int) -> DecodeRun:
        """Cost of `steps` decode steps; step j runs with contexts context_tok + j (KV tokens before the step)."""
        n = len(context_tok)
        return self._assemble(self._linear(n, n), self._decode_attention(context_tok, steps), self.cuda_graphs, n)

    # -- linear layers, elementwise traffic, sampler ---------------------------------------------------------

    def _linear(self, tokens: int, sampled: int) -> _Linear:
        key = (tokens, sampled)
        found = self._linear_cache.get(key)
        if found is None:
            found = self._linear_cache[key] = self._compute_linear(tokens, sampled)
        return found

    def _compute_linear(self, tokens: int, sampled: int) -> _Linear:
        memory_s = compute_s = moved = flops = 0.0
        for gemm in self.plan.gemms:
            seconds, share, byte, energy_flop = self._gemm(gemm, sampled if gemm.rows == "sampled" else tokens)
            compute_s += seconds * share
            memory_s += seconds * (1.0 - share)
            moved += byte
            flops += energy_flop
        byte = self.plan.elementwise_byte_per_tok * tokens
        memory_s += byte / (self._bandwidth * self.p.weight_bandwidth_fraction)
        sampler_s, sampler_byte = self._sampling(sampled)
        return _Linear(memory_s, compute_s, sampler_s, moved + byte + sampler_byte, flops)

    def _gemm(self, gemm: Gemm, rows: int) -> tuple[float, float, float, float]:
        """(seconds, compute share, bytes, 16-bit FLOP equivalents) of all products of one kind in a pass."""
        if rows == 0:
            return 0.0, 0.0, 0.0, 0.0
        copies = 1.0  # weight matrices touched per product: distinct experts for MoE
        rows_each = float(rows)
        if gemm.rows == "experts":
            copies = touched_experts(gemm.experts, gemm.experts_per_token, rows)
            rows_each = rows * gemm.experts_per_token / copies
        dtype = self._quantised_dtype if gemm.quantised else self._base_dtype
        inner, outer = gemm.in_features, gemm.out_features
        element = self.precision.base_byte
        byte = copies * (inner * outer * gemm.weight_byte + rows_each * (inner + outer) * element)
        flop = copies * 2.0 * rows_each * inner * outer
        memory_s = byte / (self._bandwidth * self.p.weight_bandwidth_fraction)
        if rows_each <= self.p.skinny_rows:
            # Kernels on the vector units: each row beyond the first is another multiplication of every weight
            # that has just been loaded, and is not hidden behind the loads.
            extra = copies * 2.0 * max(rows_each - 1.0, 0.0) * inner * outer
            compute_s = self._vector_seconds(extra)
            energy_flop = flop - extra + extra * self._relative_energy("fp32")
            seconds = compute_s + memory_s
            share = compute_s / seconds
        else:
            compute = self.device.compute
            byte += copies * reread_byte(rows_each, inner, outer, compute.sm_count, compute.l2_byte, element)
            memory_s = byte / (self._bandwidth * self.p.weight_bandwidth_fraction)
            compute_s = min(self._tensor_seconds(rows_each, outer, inner, copies, dtype), self._vector_seconds(flop))
            energy_flop = flop * self._relative_energy(dtype)
            seconds = float(smooth_maximum(compute_s, memory_s, self.p.roofline_exponent))
            share = float(compute_share(compute_s, memory_s, self.p.roofline_exponent))
        count = gemm.count
        return count * seconds, share, count * byte, count * energy_flop

    def _tensor_seconds(self, rows: float, outer: int, inner: int, copies: float, dtype: str) -> float:
        peak = self.device.compute.peak_flop_per_s[dtype]
        fraction = self.p.gemm_compute_fraction_8bit if dtype in ("fp8", "int8") else self.p.gemm_compute_fraction
        # Grouped products share the multiprocessors: tiles of all touched experts fill the waves together.
        work = float(padded_work(np.ceil(rows), outer * copies, self.device.compute.sm_count))
        return 2.0 * work * inner / (peak * fraction)

    def _vector_seconds(self, flop: float) -> float:
        """Matrix-vector kernels run on the vector units: no tiles to fill, so libraries use them for a row."""
        return flop / (self._vector_peak * self.p.skinny_vector_fraction)

    def _relative_energy(self, dtype: str) -> float:
        """Energy of one FLOP relative to 16 bit: units are sized to draw about the same at their peak rates."""
        peaks = self.device.compute.peak_flop_per_s
        return peaks["fp16"] / peaks[dtype]

    def _sampling(self, sampled: int) -> tuple[float, float]:
        """(seconds, bytes) of turning logits into tokens."""
        if sampled == 0:
            return 0.0, 0.0
        full = self.sampler == "full"
        passes = max(self.p.sampler_passes, _GREEDY_PASSES) if full else _GREEDY_PASSES
        byte = passes * _LOGIT_BYTE * sampled * self.plan.vocab_size
        seconds = byte / (self._bandwidth * self.p.weight_bandwidth_fraction)
        return seconds + (self.p.sampler_start_s if full else 0.0), byte

    # -- attention and recurrent state -----------------------------------------------------------------------

    def _decode_attention(self, context_tok: np.ndarray, steps: int) -> _Attention:
        n = len(context_tok)
        total = self._states(n, n, steps)
        element = self.precision.base_byte
        for work in self.plan.attention:
            keys = work.decode_keys(context_tok, steps)
            kv_byte = work.kv_elements_per_tok * self.precision.kv_byte
            byte = (keys + n) * kv_byte + n * work.query_elements_per_tok * element  # read all, write one per sequence
            total = self._with_attention(total, work.count, byte, keys * work.decode_flop_per_pair)
        return total

    def _prefill_attention(self, batch: Batch) -> _Attention:
        total = self._states(len(batch.prefill), sum(chunk.new_tok for chunk in batch.prefill), 1)
        element = self.precision.base_byte
        for work in self.plan.attention:
            for chunk in batch.prefill:
                pairs, read = work.keys_read(chunk)
                byte = (read + chunk.new_tok) * work.kv_elements_per_tok * self.precision.kv_byte
                byte += chunk.new_tok * work.prefill_query_elements_per_tok * element
                flop = pairs * work.prefill_flop_per_pair + chunk.cached_tok * work.expand_flop_per_cached_tok
                total = self._with_attention(total, work.count, np.array([byte]), np.array([flop]))
        return total

    def _with_attention(self, total: _Attention, count: int, byte: np.ndarray, flop: np.ndarray) -> _Attention:
        """`total` plus `count` layers of attention that move `byte` and compute `flop` each."""
        memory_s = byte / (self._bandwidth * self.p.kv_bandwidth_fraction)
        compute_s = flop / self._attention_peak
        seconds = count * smooth_maximum(compute_s, memory_s, self.p.roofline_exponent)
        return _Attention(
            total.seconds + seconds,
            total.compute_s + seconds * compute_share(compute_s, memory_s, self.p.roofline_exponent),
            total.moved_byte + count * byte,
            total.energy_flop + count * flop,
        )

    def _states(self, sequences: int, tokens: int, steps: int) -> _Attention:
        """Recurrent layers, per step: state read and written once per sequence, scans on the vector units."""
        seconds = compute = moved = flops = 0.0
        for work in self.plan.states:
            byte = 2.0 * work.state_byte_per_sequence * sequences
            flop = work.flop_per_tok * tokens
            memory_s = byte / (self._bandwidth * self.p.weight_bandwidth_fraction)
            compute_s = flop / (self._vector_peak * self.p.gemm_compute_fraction)
            layer_s = float(smooth_maximum(compute_s, memory_s, self.p.roofline_exponent))
            seconds += work.count * layer_s
            compute += work.count * layer_s * float(compute_share(compute_s, memory_s, self.p.roofline_exponent))
            moved += work.count * byte
            flops += work.count * flop * self._relative_energy("fp32")
        return _Attention(*(np.full(steps, value) for value in (seconds, compute, moved, flops)))

    # -- assembly ---------------------------------------------------------------------------------------------

    def _assemble(self, linear: _Linear, attention: _Attention, graph: bool, sequences: int) -> DecodeRun:
        """Add overheads and energy; split every second by cause."""
        steps = len(attention.seconds)
        starts_s = self.plan.kernels * self.p.kernel_start_s
        gpu_s = linear.memory_s + linear.compute_s + attention.seconds + starts_s
        # Outside graphs the host launches ahead of the GPU: whichever is slower sets the pace.
        launching_s = 0.0 if graph else self.plan.kernels * self.p.eager_launch_s
        waiting_s = np.maximum(0.0, launching_s - gpu_s)
        host_s = self.p.step_host_s + self.p.sequence_host_s * sequences
        seconds = gpu_s + waiting_s + linear.sampler_s + host_s
        dynamic_j = self.p.byte_j * (linear.moved_byte + attention.moved_byte)
        dynamic_j = dynamic_j + self.p.flop_j * (linear.energy_flop + attention.energy_flop)
        static_w = self.idle_power_w + self.p.busy_w
        stretchable_s = linear.compute_s + attention.compute_s
        held_s = np.clip(self._shortest_under_limit(dynamic_j, static_w) - seconds, 0.0, stretchable_s)
        total_s = seconds + held_s
        joules = np.minimum(static_w * total_s + dynamic_j, self.device.power.limit_w * total_s)
        shares = {
            "memory": steps * linear.memory_s,
            "compute": steps * linear.compute_s,
            "attention": float(attention.seconds.sum()),
            "launch": float(steps * starts_s + waiting_s.sum()),
            "host": steps * host_s,
            "sampler": steps * linear.sampler_s,
            "power cap": float(held_s.sum()),
        }
        return DecodeRun(total_s, joules, shares)

    def _shortest_under_limit(self, dynamic_j: np.ndarray, static_w: float) -> np.ndarray:
        """Shortest time in which this energy keeps mean power at the device's limit; 0 where nothing is to spare.

        Under a limit the device lowers the clock of its cores, not of its memory: what computes takes longer, up to
        twice as long, while bytes keep their pace and cost less at the lower voltage.
        """
        room_w = self.device.power.limit_w - static_w
        return dynamic_j / room_w if room_w > 0.0 else np.zeros_like(dynamic_j)
