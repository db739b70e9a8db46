"""Family 6: what is planned fits, in the bytes that the architecture has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from simulator.errors import UserError
from simulator.memory import MemoryPlan
from simulator.model.layers import Attention
from validate.laws.law import Family, Law, Result
from validate.laws.runs import Runs
from validate.laws.subjects import Subject

MORE, LESS = 1.25, 0.8
VLLM = "vLLM: determine_available_memory"

FITS = Law(
    "6.1", "fits", "Weights, KV cache, recurrent state, activations and what the engine keeps fit the device.",
    "weights + KV blocks + state + activations + overhead <= gpu_memory_utilization x capacity", VLLM, "byte",
)  # fmt: skip
WEIGHTS = Law(
    "6.2", "weights", "All devices together hold every parameter at least once, in no narrower format than stated.",
    "n x weights >= parameters x bytes per weight", "parameters counted from config.json", "byte", tolerance=1e-3,
)  # fmt: skip
KV_BYTES = Law(
    "6.3", "KV bytes", "A token's share of the KV cache is what its layers, heads and head size say.",
    "kv_byte_per_tok = sum of layers x 2 x KV heads / tp x head size x bytes", "config.json; MLA: arXiv:2405.04434",
    "byte",
)  # fmt: skip
BLOCKS = Law(
    "6.4", "KV blocks", "No room for another KV block is left over.",
    "floor(what is left / block bytes) = kv_blocks", VLLM, "blocks",
)  # fmt: skip
ROOM = Law(
    "6.5", "more memory", f"{MORE:g} times the memory never holds less KV cache, {LESS:g} times never more.",
    "KV(capacity up) >= KV >= KV(capacity down)", VLLM, "tok",
)  # fmt: skip
SIZE = Law(
    "6.6", "larger model", "The same model with twice the layers leaves less room for KV cache.",
    "KV(2 x layers) < KV", VLLM, "tok",
)  # fmt: skip

ALONE = Law(
    "6.7", "replicas", "A replica beside another that shares nothing with it has the memory that it has alone.",
    "KV(dp = 2) = KV(dp = 1)", "two halves that share nothing", "tok",
)  # fmt: skip

FAMILY = Family(
    "Memory", "The memory plan of each server, of one with more and with less memory, and of a deeper model.",
    (FITS, WEIGHTS, KV_BYTES, BLOCKS, ROOM, SIZE, ALONE),
)  # fmt: skip


def check(subject: Subject, _: Runs) -> Iterator[Result]:
    """One result per law."""
    plan, usable = (
        _plan(subject),
        subject.instance.settings.gpu_memory_utilization * subject.device.memory.capacity_byte,
    )
    rest = plan.weights_byte + plan.activation_byte + plan.overhead_byte
    rest += plan.state_byte_per_sequence * subject.instance.settings.max_num_seqs
    block = plan.kv_byte_per_tok * plan.block_size
    yield FITS.at_most(rest + plan.kv_blocks * block, usable)
    yield WEIGHTS.at_least(subject.parallel.world_size * plan.weights_byte, _least_weights_byte(subject))
    yield KV_BYTES.equal(plan.kv_byte_per_tok, _kv_byte(subject))
    yield BLOCKS.equal(math.floor((plan.usable_byte - rest) / block), plan.kv_blocks)
    own = plan.kv_capacity_tok
    changed = (_room(subject, capacity=MORE), own, _room(subject, capacity=LESS))
    yield ROOM.at_least(changed[:2], changed[1:], [f"{MORE:g} x memory", f"{LESS:g} x memory"])
    yield SIZE.at_most(_room(subject, layers=2), own - 1)
    yield ALONE.equal(_room(subject, dp=2), own)


def _plan(subject: Subject, capacity: float = 1.0, layers: int = 1, dp: int = 1) -> MemoryPlan:
    instance, device, model = subject.instance, subject.device, subject.model
    memory = msgspec.structs.replace(device.memory, capacity_byte=int(capacity * device.memory.capacity_byte))
    groups = tuple(replace(group, count=layers * group.count) for group in model.layers)
    return subject.simulator.plan_memory(
        replace(model, layers=groups), msgspec.structs.replace(device, memory=memory), instance.precision,
        instance.settings, replace(instance.parallel, dp=dp),
    )  # fmt: skip


def _room(subject: Subject, **changes: float) -> int:
    """Tokens of KV cache; 0 where the model does not fit."""
    try:
        return _plan(subject, **changes).kv_capacity_tok
    except UserError:
        return 0


def _least_weights_byte(subject: Subject) -> float:
    """Every parameter in the narrowest format that this precision has for it."""
    model, precision = subject.model, subject.instance.precision
    outside = model.parameters() - sum(g.count * g.parameters(model.hidden_size) for g in model.layers)
    layers = model.parameters() - outside
    return outside * precision.base_weight_byte + layers * min(precision.weight_byte, precision.base_weight_byte)


def _kv_byte(subject: Subject) -> float:
    """Bytes per token and device: KV heads are shared out, and copied where there are fewer than devices."""
    elements, tp = 0.0, subject.parallel.tp
    for group in subject.model.layers:
        mixer = group.mixer
        if isinstance(mixer, Attention):
            elements += group.count * 2 * max(1.0, mixer.kv_heads / tp) * mixer.head_dim
        elif mixer is not None:
            elements += group.count * mixer.kv_elements_per_token
    return elements * subject.instance.precision.kv_byte
