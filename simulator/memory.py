"""What fits: weights, KV blocks, activations; and when it does not, how much is missing and what would fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.device import Device
from simulator.errors import UserError
from simulator.model import Model
from simulator.model.layers import MoeFfn
from simulator.operators import STATE_BYTE, is_quantised
from simulator.precision import WEIGHT_BYTE, Precision

if TYPE_CHECKING:
    from simulator.engine.settings import EngineSettings

# CUDA context, library workspaces and captured graphs: what vLLM's start-up log reports beside weights and
# activations is 0.5-1.5 GB over models and GPUs.
ENGINE_OVERHEAD_BYTE = 1.0e9
GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """How an engine would divide the device's memory. All sizes in bytes unless the name says tokens or blocks."""

    capacity_byte: float  # of the device
    usable_byte: float  # capacity x gpu_memory_utilization
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


def weights_byte(model: Model, precision: Precision) -> float:
    """Bytes of all weights in memory: quantised layers in their format, the rest in the base type."""
    quantised = sum(group.count * _quantised_parameters(group, model.hidden_size, precision) for group in model.layers)
    return quantised * precision.weight_byte + (model.parameters() - quantised) * precision.base_byte


def _quantised_parameters(group, hidden_size: int, precision: Precision) -> int:
    """Weights of one layer that the precision's weight format applies to."""
    count = 0
    if isinstance(group.ffn, MoeFfn):
        count += group.ffn.experts * sum(
            p.in_features * p.out_features * p.count for p in group.ffn.expert_projections(hidden_size)
        )
    always = (p for p in group.projections(hidden_size) if is_quantised(p, precision))
    return count + sum(p.in_features * p.out_features * p.count for p in always)


def kv_byte_per_tok(model: Model, precision: Precision) -> float:
    """KV cache bytes of one token over all attention layers; windowed ones counted as if they kept every token."""
    return model.kv_elements_per_token * precision.kv_byte


def activation_byte(model: Model, precision: Precision, max_num_batched_tokens: int, max_num_seqs: int) -> float:
    """Peak of intermediate tensors in one step: hidden states, the widest layer's buffers, fp32 logits.

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
    per_token = (3.0 * model.hidden_size + 1.5 * widest) * precision.base_byte
    logits = 2.0 * 4.0 * min(max_num_seqs, max_num_batched_tokens) * model.vocab_size
    return per_token * max_num_batched_tokens + logits


def plan_memory(model: Model, device: Device, precision: Precision, settings: EngineSettings) -> MemoryPlan:
    """Divide the memory as vLLM does: what weights, activations and the engine leave becomes KV blocks.

    Raises UserError when not even 16 blocks fit: with the missing bytes and what would fit instead. Whether they hold
    max_model_len is the caller's to check.
    """
    capacity = float(device.memory.capacity_byte)
    usable = capacity * settings.gpu_memory_utilization
    weights = weights_byte(model, precision)
    budget_tok = settings.max_num_batched_tokens
    activations = activation_byte(model, precision, budget_tok, settings.max_num_seqs)
    per_tok = kv_byte_per_tok(model, precision)
    state = STATE_BYTE * model.state_elements
    left = usable - weights - activations - ENGINE_OVERHEAD_BYTE - state * settings.max_num_seqs
    block_byte = per_tok * settings.block_size
    blocks = int(left // block_byte) if block_byte > 0 and left > 0 else 0
    if block_byte == 0 and left > 0:  # no attention layer: contexts cost nothing
        blocks = 10**9
    if blocks < 16:
        raise UserError(_does_not_fit(model, device, precision, settings, usable, usable - left + 16 * block_byte))
    return MemoryPlan(
        capacity, usable, weights, activations, ENGINE_OVERHEAD_BYTE, per_tok, state, settings.block_size, blocks
    )


def _does_not_fit(model: Model, device: Device, precision: Precision, settings, usable: float, needed: float) -> str:
    """One sentence: what is needed, what there is, and what would fit."""
    weights = weights_byte(model, precision)
    state = "recurrent state, " if model.state_elements else ""
    return (
        f"{model.name} in {precision.weights} does not fit {device.name}: weights, activations, {state}engine and "
        f"smallest KV cache need {needed / GIB:.1f} GiB ({weights / GIB:.1f} GiB of it weights), but "
        f"gpu_memory_utilization {settings.gpu_memory_utilization:g} of {device.memory.capacity_byte / GIB:.1f} GiB "
        f"leaves {usable / GIB:.1f} GiB, {(needed - usable) / GIB:.1f} GiB are missing; "
        f"{_remedy(model, precision, usable, needed)}"
    )


def _remedy(model: Model, precision: Precision, usable: float, needed: float) -> str:
    """What would make it fit: other settings, another weight format, or nothing."""
    weights = weights_byte(model, precision)
    if needed - weights > usable:
        return "lower --max-num-seqs, --max-num-batched-tokens or --block-size, or raise --gpu-memory-utilization"
    own = model.quantisation
    if own in WEIGHT_BYTE and own != precision.weights:
        published = Precision(own, precision.base, precision.kv_cache, precision.base, model.quantised_experts_only)
        if needed - weights + weights_byte(model, published) <= usable:
            return f"the checkpoint's own {own} (leave --weights out) would fit"
    fitting = [
        name
        for name in ("fp8", "int8", "int4")
        if WEIGHT_BYTE[name] < precision.weight_byte
        and needed - weights + weights_byte(model, _with_weights(precision, name)) <= usable
    ]
    return (
        f"--weights {' or '.join(fitting)} would fit" if fitting else "no weight format of this model fits this device"
    )


def _with_weights(precision: Precision, name: str) -> Precision:
    return Precision(name, precision.activations, precision.kv_cache, precision.base, False)
