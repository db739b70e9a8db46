"""What fits: weights, KV blocks, activations; and when it does not, how much is missing and what would fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.device import Device
from simulator.errors import UserError
from simulator.model import Model
from simulator.model.layers import Attention, MoeFfn
from simulator.operators import STATE_BYTE
from simulator.parallel import SINGLE, Parallelism, split_heads, split_projection
from simulator.precision import WEIGHT_BYTE, Precision

if TYPE_CHECKING:
    from simulator.engine.settings import EngineSettings

# Of a board's memory the driver keeps about a hundredth (torch sees 79.2 GiB of an H100's 80, 39.4 of an A100's 40).
VISIBLE_SHARE = 0.99
GIB = 2**30
# CUDA context, library workspaces, graphs: what vLLM's start-up log calls non-torch memory. On an H100 it is 1.79 GiB
# alone and 3.58 GiB with a tensor-parallel partner (vllm-project/vllm pull request 10511), whose buffers come on top.
# An A100's log says 1.39 GiB: it grows with the number of multiprocessors, whose stacks and workspaces it holds.
OVERHEAD_BYTE_PER_SM = 1.79 * GIB / 132
COMMUNICATION_BYTE_PER_SM = 1.79 * GIB / 132
UNIFIED_OVERHEAD_BYTE = 1.0e9  # where host and GPU share one memory
WINDOW_BLOCK_TOK = 16


@dataclass(frozen=True)
class MemoryPlan:
    """How an engine would divide the device's memory. All sizes in bytes unless the name says tokens or blocks."""

    capacity_byte: float  # of the device
    usable_byte: float  # what the driver leaves x gpu_memory_utilization
    weights_byte: float
    activation_byte: float
    overhead_byte: float
    kv_byte_per_tok: float  # growing part: attention layers; 0 for purely recurrent models
    state_byte_per_sequence: float  # recurrent layers
    block_size: int
    kv_blocks: int

    @property
    def kv_capacity_tok(self) -> int:
        """Tokens of KV cache that there is room for."""
        return self.kv_blocks * self.block_size


def weights_byte(model: Model, precision: Precision, parallel: Parallelism = SINGLE) -> float:
    """Bytes of the weights that one device holds: quantised layers in their format, the rest in the base type.

    With pipeline stages: of an average stage.
    """
    layers = sum(group.count * _layer_byte(group, model.hidden_size, precision, parallel) for group in model.layers)
    outside = (model.embedding_parameters() + model.lm_head_parameters()) / parallel.tp + model.final_norm_parameters
    return (layers + outside * precision.base_weight_byte) / parallel.pp


def _layer_byte(group, hidden_size: int, precision: Precision, parallel: Parallelism) -> float:
    """Bytes of one layer on one device."""
    byte = group.norm_parameters * precision.base_weight_byte
    for part in (group.mixer, group.ffn):
        byte += part.other_parameters(hidden_size) * precision.base_weight_byte / parallel.tp if part else 0.0
    for p in group.projections(hidden_size):
        inner, outer = split_projection(p.name, p.in_features, p.out_features, group.mixer, parallel.tp)
        each = precision.weight_byte if precision.quantises(p.name) else precision.base_weight_byte
        byte += p.count * outer * (inner * each + p.bias * precision.base_weight_byte)
    if isinstance(group.ffn, MoeFfn):
        expert = sum(
            p.count * p.out_features * (p.in_features * precision.weight_byte + p.bias * precision.base_weight_byte)
            for p in group.ffn.expert_projections(hidden_size)
        )
        byte += group.ffn.experts * expert / (parallel.ep * parallel.expert_tp)
    return byte


def kv_byte_per_tok(
    model: Model, precision: Precision, parallel: Parallelism = SINGLE, held_tok: float | None = None
) -> float:
    """KV cache bytes of one token on one device, all attention layers.

    held_tok: tokens that a running sequence holds in the mean, where the engine frees blocks behind sliding windows;
    None: windowed layers keep every token.
    """
    elements = 0.0
    for group in model.layers:
        if isinstance(group.mixer, Attention):
            kept = kept_share(group.mixer, held_tok)
            elements += kept * group.count * 2 * split_heads(group.mixer, parallel.tp)[1] * group.mixer.head_dim
        elif group.mixer is not None:
            elements += group.count * group.mixer.kv_elements_per_token
    return elements * precision.kv_byte / parallel.pp


def kept_share(mixer: Attention, held_tok: float | None) -> float:
    """Share of `held_tok` tokens that a layer keeps: its window and the block in progress (vLLM's hybrid manager).

    Chunked windows keep all (vLLM turns the hybrid manager off for them).
    """
    if held_tok is None or mixer.window_tok is None or mixer.chunked:
        return 1.0
    return min(1.0, (mixer.window_tok + WINDOW_BLOCK_TOK) / held_tok)


def activation_byte(
    model: Model, precision: Precision, max_num_batched_tokens: int, max_num_seqs: int, tp: int = 1
) -> float:
    """Peak of intermediate tensors in one step on one device: hidden states, the widest layer's buffers, fp32 logits.

    vLLM profiles this with a forward pass of max_num_batched_tokens; the estimate counts the tensors alive at the
    widest point: residual, hidden and the fused gate+up output with its activation.
    """
    widest = max(
        [
            p.out_features
            for g in model.layers
            for part in (g.mixer, g.ffn)
            if part
            for p in part.projections(model.hidden_size)
        ]
        + [
            g.ffn.experts_per_token * p.out_features
            for g in model.layers
            if isinstance(g.ffn, MoeFfn)
            for p in g.ffn.expert_projections(model.hidden_size)
        ]
    )
    per_token = (3.0 * model.hidden_size + 1.5 * widest / tp) * precision.base_byte
    logits = 2.0 * 4.0 * min(max_num_seqs, max_num_batched_tokens) * model.vocab_size
    return per_token * max_num_batched_tokens + logits


def overhead_byte(device: Device, parallel: Parallelism = SINGLE) -> float:
    """What the engine keeps on each device beside weights, activations and KV cache.

    Replicas that share nothing send each other nothing, and keep no buffers for it.
    """
    if device.memory.unified:
        return UNIFIED_OVERHEAD_BYTE
    grouped = parallel.tp * parallel.pp > 1 or parallel.shared_experts
    per_sm = OVERHEAD_BYTE_PER_SM + COMMUNICATION_BYTE_PER_SM * grouped
    return per_sm * device.compute.sm_count


def plan_memory(
    model: Model,
    device: Device,
    precision: Precision,
    settings: EngineSettings,
    parallel: Parallelism = SINGLE,
    held_tok: float | None = None,
) -> MemoryPlan:
    """Divide each device's memory as vLLM does: what weights, activations and the engine leave becomes KV blocks.

    All sizes are per device; `kv_blocks` are blocks of the replica, of which each device keeps its share. `held_tok`:
    see `kv_byte_per_tok`; blocks of sequences of that length in the mean then fill the cache as theirs do.

    Raises UserError when not even 16 blocks fit: with the missing bytes and what would fit instead. Whether they hold
    max_model_len is the caller's to check.
    """
    capacity = float(device.memory.capacity_byte)
    overhead = overhead_byte(device, parallel)
    usable = capacity * settings.gpu_memory_utilization * (1.0 if device.memory.unified else VISIBLE_SHARE)
    weights = weights_byte(model, precision, parallel)
    budget_tok = settings.max_num_batched_tokens
    activations = activation_byte(model, precision, budget_tok, settings.max_num_seqs, parallel.tp)
    per_tok = kv_byte_per_tok(model, precision, parallel, held_tok)
    state = STATE_BYTE * model.state_elements / (parallel.tp * parallel.pp)
    left = usable - weights - activations - overhead - state * settings.max_num_seqs
    block_byte = per_tok * settings.block_size
    blocks = int(left // block_byte) if block_byte > 0 and left > 0 else 0
    if block_byte == 0 and left > 0:  # no attention layer: contexts cost nothing
        blocks = 10**9
    if blocks < 16:
        raise UserError(
            _does_not_fit(model, device, precision, settings, parallel, usable, usable - left + 16 * block_byte)
        )
    return MemoryPlan(capacity, usable, weights, activations, overhead, per_tok, state, settings.block_size, blocks)


def _does_not_fit(
    model: Model, device: Device, precision: Precision, settings, parallel: Parallelism, usable: float, needed: float
) -> str:
    """One sentence: what is needed, what there is, and what would fit."""
    weights = weights_byte(model, precision, parallel)
    split = f" on each of {parallel.world_size} devices" if parallel.world_size > 1 else ""
    state = "recurrent state, " if model.state_elements else ""
    return (
        f"{model.name} in {precision.weights} does not fit {device.name}{split}: weights, activations, {state}engine "
        f"and smallest KV cache need {needed / GIB:.1f} GiB ({weights / GIB:.1f} GiB of it weights), but "
        f"gpu_memory_utilization {settings.gpu_memory_utilization:g} of {device.memory.capacity_byte / GIB:.1f} GiB "
        f"leaves {usable / GIB:.1f} GiB, {(needed - usable) / GIB:.1f} GiB are missing; "
        f"{_remedy(model, precision, parallel, usable, needed)}"
    )


def _remedy(model: Model, precision: Precision, parallel: Parallelism, usable: float, needed: float) -> str:
    """What would make it fit: other settings, another weight format, or nothing."""
    weights = weights_byte(model, precision, parallel)
    if needed - weights > usable:
        return "lower --max-num-seqs, --max-num-batched-tokens or --block-size, or raise --gpu-memory-utilization"
    own = model.quantisation
    if own in WEIGHT_BYTE and own != precision.weights:
        published = Precision(own, precision.base, precision.kv_cache, precision.base, model.quantised_experts_only)
        if needed - weights + weights_byte(model, published, parallel) <= usable:
            return f"the checkpoint's own {own} (leave --weights out) would fit"
    fitting = [
        name
        for name in ("fp8", "int8", "int4")
        if WEIGHT_BYTE[name] < precision.weight_byte
        and needed - weights + weights_byte(model, _with_weights(precision, name), parallel) <= usable
    ]
    return (
        f"--weights {' or '.join(fitting)} would fit" if fitting else "no weight format of this model fits this device"
    )


def _with_weights(precision: Precision, name: str) -> Precision:
    return Precision(name, precision.activations, precision.kv_cache, precision.base, False)
