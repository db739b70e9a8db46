"""What a step costs by its number of tokens alone: linear layers, experts, small kernels, messages, sampling.

Contexts play no part here, so a prepared deployment computes each number of tokens once and looks it up afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simulator.device import Device
from simulator.kernels.collective import all_gather_time, all_reduce_time, point_to_point_time
from simulator.kernels.gemm import gemm_time
from simulator.kernels.moe import moe_time, touched_experts
from simulator.operators import ExpertWork, ForwardPlan, Gemm, Message
from simulator.parallel import Parallelism
from simulator.parameters import Parameters
from simulator.precision import SIXTEEN_BIT, arithmetic_type, compute_dtype

# Columns of a cost row; seconds unless the name says otherwise.
COLUMNS = ("start", "compute", "memory", "message", "eager_message", "sampler", "moved_byte", "energy_flop")
START, COMPUTE, MEMORY, MESSAGE, EAGER_MESSAGE, SAMPLER, MOVED_BYTE, ENERGY_FLOP = range(len(COLUMNS))
# Passes over batch x vocabulary by a greedy sampler: cast to fp32, read for the maximum, log-probability of it.
_GREEDY_PASSES = 3.0
# Weight-only kernels unpack and scale every weight on the vector units: shift and mask, multiply-add.
UNPACK_FLOP = 2.0
WEIGHT_ONLY_EXPERTS = frozenset({"moe4_weight_only", "moe_mxfp4"})
_LOGIT_BYTE = 4.0  # logits are sampled in fp32
_BESIDE = 32  # costs of so many neighbouring numbers are computed at once


class CostTable:
    """Rows of COLUMNS by a whole number (of tokens, of sampled sequences), computed on first use.

    `compute(numbers)` maps an int array (n,) to costs (n, len(COLUMNS)). Row 0 is all zeros.
    """

    def __init__(self, compute: Callable[[np.ndarray], np.ndarray]) -> None:
        self._compute = compute
        self._rows = np.zeros((256, len(COLUMNS)))
        self._known = np.zeros(256, dtype=bool)
        self._known[0] = True
        self._plain: dict[int, list[float]] = {}

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Costs of every entry of `numbers` (S,), shape (S, columns)."""
        top = int(numbers.max(initial=0))
        if top >= len(self._known):
            self._grow(max(top + 1, 2 * len(self._known)))
        known = self._known[numbers]
        if not known.all():
            self._fill(np.unique(numbers[~known]))
        return self._rows[numbers]

    def row(self, number: int) -> list[float]:
        """Costs of one number. Those beside it are computed with it: they take no longer, and often come next."""
        found = self._plain.get(number)
        if found is None:
            end = (number // _BESIDE + 1) * _BESIDE
            if end > len(self._known):
                self._grow(max(end, 2 * len(self._known)))
            if not self._known[number]:
                beside = np.arange(end - _BESIDE, end)
                self._fill(beside[~self._known[beside]])
            found = self._plain[number] = self._rows[number].tolist()
        return found

    def _fill(self, numbers: np.ndarray) -> None:
        self._rows[numbers] = self._compute(numbers)
        self._known[numbers] = True

    def _grow(self, size: int) -> None:
        more = size - len(self._known)
        self._rows = np.vstack((self._rows, np.zeros((more, len(COLUMNS)))))
        self._known = np.concatenate((self._known, np.zeros(more, dtype=bool)))


class TokenCosts:
    """Costs of one model's forward pass by tokens, and of sampling by sequences, on one device of its group."""

    def __init__(
        self, plan: ForwardPlan, device: Device, parameters: Parameters, hidden_byte: float, greedy: bool,
        parallel: Parallelism,
    ) -> None:  # fmt: skip
        self.plan, self.device, self.p, self.parallel = plan, device, parameters, parallel
        self._hidden_byte, self._greedy = hidden_byte, greedy
        self._bandwidth = device.memory.bandwidth_byte_per_s * parameters.gemm16.memory_fraction
        self.by_tokens = CostTable(self._token_rows)
        self.by_sampled = CostTable(self._sampled_rows)

    def relative_energy(self, dtype: str) -> float:
        """Energy of one FLOP relative to 16 bit: units are sized to draw about the same at their peak rates."""
        peaks = self.device.compute.peak_flop_per_s
        return peaks["fp16"] / peaks[compute_dtype(self.device, dtype)]

    def _unpacking(self) -> float:
        """Energy of turning one narrow weight into 16 bit, in 16-bit FLOPs: vector operations, once per pass."""
        return UNPACK_FLOP * self.relative_energy("fp32")

    # -- by tokens ---------------------------------------------------------------------------------------------

    def _token_rows(self, tokens: np.ndarray) -> np.ndarray:
        out = np.zeros((len(tokens), len(COLUMNS)))
        for gemm in self.plan.gemms:
            if gemm.rows == "tokens":
                self._add_gemm(out, gemm, tokens.astype(float))
        for work in self.plan.experts:
            self._add_experts(out, work, tokens.astype(float))
        byte = self.plan.elementwise_byte_per_tok * tokens
        out[:, MEMORY] += byte / self._bandwidth
        out[:, MOVED_BYTE] += byte
        out[:, START] += self.plan.small_kernels * self.p.engine.small_kernel_s
        for message in self.plan.messages:
            self._add_message(out, message, tokens)
        if self.parallel.pp > 1:
            hop = point_to_point_time(tokens * self._hidden_byte, self.device, self.p.collective)
            out[:, MESSAGE] += self.parallel.pp * hop
            out[:, EAGER_MESSAGE] += self.parallel.pp * hop
        return out

    def _add_gemm(self, out: np.ndarray, gemm: Gemm, rows: np.ndarray) -> None:
        p = getattr(self.p, gemm_group(gemm))
        inner, outer = gemm.in_features, gemm.out_features
        activation = arithmetic_type(gemm.activation)
        time = gemm_time(
            rows, inner, outer, weight_byte=gemm.weight_byte, activation=activation, device=self.device, p=p
        )
        _add(out, time, gemm.count)
        byte = inner * outer * gemm.weight_byte + rows * (inner + outer) * self._hidden_byte
        out[:, MOVED_BYTE] += gemm.count * byte
        flop = 2.0 * executed_rows(rows) * inner * outer * self.relative_energy(gemm.activation)
        if gemm_group(gemm) == "gemm_weight_only":
            flop = flop + inner * outer * self._unpacking() * (rows > 0.0)
        out[:, ENERGY_FLOP] += gemm.count * flop

    def _add_experts(self, out: np.ndarray, work: ExpertWork, tokens: np.ndarray) -> None:
        parallel, skew = self.parallel, self.p.engine.routing_skew
        if parallel.shared_experts:
            tokens = tokens * parallel.dp
        time = moe_time(
            tokens, hidden=work.hidden, intermediate=work.intermediate, experts=work.experts,
            experts_per_token=work.experts_per_token, weight_byte=work.weight_byte, activation=work.activation,
            gated=work.gated, device=self.device, p=getattr(self.p, work.kernel), tp=parallel.expert_tp, ep=parallel.ep,
            skew=skew,
        )  # fmt: skip
        _add(out, time, work.count)
        share = parallel.expert_tp * parallel.ep
        weights = work.hidden * work.intermediate * (3.0 if work.gated else 2.0)
        touched = touched_experts(work.experts, work.experts_per_token, tokens, skew)
        routed = tokens * work.experts_per_token
        executed = touched * executed_rows(routed / np.maximum(touched, 1e-9))
        out[:, MOVED_BYTE] += work.count * touched * weights * work.weight_byte / share
        out[:, MOVED_BYTE] += work.count * routed * (2.0 * work.hidden + 3.0 * work.intermediate) * 2.0 / share
        flop = 2.0 * executed * weights / share * self.relative_energy(work.activation)
        if work.kernel in WEIGHT_ONLY_EXPERTS:
            flop = flop + touched * weights / share * self._unpacking()
        out[:, ENERGY_FLOP] += work.count * flop

    def _add_message(self, out: np.ndarray, message: Message, tokens: np.ndarray) -> None:
        byte, p = message.byte_per_tok * tokens, self.p.collective
        if message.kind == "all_reduce":
            inside = all_reduce_time(byte, message.world_size, self.device, p, graph=True)
            outside = all_reduce_time(byte, message.world_size, self.device, p, graph=False)
        else:  # gathering and scattering move each replica's tokens to all the others
            inside = outside = all_gather_time(byte, message.world_size, self.device, p)
        out[:, MESSAGE] += message.count * inside
        out[:, EAGER_MESSAGE] += message.count * outside

    # -- by sampled sequences ------------------------------------------------------------------------------------

    def _sampled_rows(self, sampled: np.ndarray) -> np.ndarray:
        out = np.zeros((len(sampled), len(COLUMNS)))
        for gemm in self.plan.gemms:
            if gemm.rows == "sampled":
                self._add_gemm(out, gemm, sampled.astype(float))
        p = self.p.engine
        passes = _GREEDY_PASSES if self._greedy else max(p.sampler_passes, _GREEDY_PASSES)
        # Logits are gathered from all devices and sampled by each.
        byte = passes * _LOGIT_BYTE * sampled * self.plan.vocab_size * self.parallel.tp
        out[:, SAMPLER] = byte / self._bandwidth + (0.0 if self._greedy else p.sampler_start_s)
        out[:, MOVED_BYTE] += byte
        if self.parallel.tp > 1:
            byte = self.plan.logits_byte_per_sampled * sampled
            gather = all_gather_time(byte, self.parallel.tp, self.device, self.p.collective)
            out[:, MESSAGE] += gather
            out[:, EAGER_MESSAGE] += gather
        return out


def executed_rows(rows: np.ndarray) -> np.ndarray:
    """Rows that matrix units multiply, and pay for, when `rows` (S,) are asked for: whole tiles of 16, on average.

    The smallest tile of a tensor-core instruction has 16 rows; what is padded costs energy like the rest.
    """
    return np.where(rows > 0.0, np.maximum(16.0, rows + 8.0), 0.0)


def gemm_group(gemm: Gemm) -> str:
    """The parameter group of a matrix product's kernels."""
    if gemm.activation in SIXTEEN_BIT:
        return "gemm16" if gemm.weight_byte >= 2.0 else "gemm_weight_only"
    return "gemm16" if gemm.activation == "fp32" else "gemm8"


def _add(out: np.ndarray, time, count: int) -> None:
    """Add `count` operators of this OperatorTime to the cost rows."""
    out[:, START] += count * time.start_s
    out[:, COMPUTE] += count * time.compute_s
    out[:, MEMORY] += count * time.memory_s
