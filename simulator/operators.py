"""What one forward pass DOES on one device: operators with shapes, bytes, FLOPs and messages, from the architecture.

Nothing here knows a device's speed. A `ForwardPlan` is computed once per (model, precision, parallelism); a step then
only scales it with its tokens and keys.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import singledispatch

from simulator.keys import key_rules, mixer_rule
from simulator.model import Model
from simulator.model.layers import Attention, DenseFfn, LatentAttention, LayerGroup, Mamba2, MoeFfn, ShortConvolution
from simulator.parallel import SINGLE, Parallelism, split_heads, split_projection
from simulator.precision import FOUR_BIT, SIXTEEN_BIT, Precision


@dataclass(frozen=True)
class Gemm:
    """`count` matrix products per pass on one device, each rows x in_features times out_features x in_features.

    rows: "tokens" = every new token, "sampled" = only positions that get logits.
    """

    in_features: int
    out_features: int
    weight_byte: float  # per weight
    activation: str  # arithmetic type
    count: int = 1
    rows: str = "tokens"


@dataclass(frozen=True)
class ExpertWork:
    """`count` fused mixtures of experts per pass; sizes of the whole layer, split by the kernel model."""

    count: int
    hidden: int
    intermediate: int
    experts: int
    experts_per_token: int
    gated: bool
    weight_byte: float
    activation: str
    kernel: str  # parameter group of its kernels


@dataclass(frozen=True)
class AttentionWork:
    """Attention of `count` layers that share heads and key rule, on one device.

    `kv_elements_per_tok` are stored per layer and token; `*_flop_per_pair` per layer and (query, key) pair.
    `rule` is an index into the model's `key_rules`.
    """

    count: int
    rule: int
    q_heads: int
    kv_heads: int
    head_dim: int  # of prefill
    decode_head_dim: int  # in absorbed latent attention the width of the latent
    kv_elements_per_tok: int
    query_elements_per_tok: int  # queries read and outputs written when decoding, per layer and token
    prefill_query_elements_per_tok: int  # the same in prefill
    prefill_flop_per_pair: float
    decode_flop_per_pair: float
    expand_flop_per_cached_tok: float = 0.0  # prefill behind a compressed cache: keys and values made again


@dataclass(frozen=True)
class StateWork:
    """Recurrent mixers (Mamba2, short convolution) of `count` layers on one device: state traffic and FLOPs."""

    count: int
    state_byte_per_sequence: float  # held per layer and sequence, read and written once per step
    flop_per_tok: float


@dataclass(frozen=True)
class Message:
    """`count` collective operations per pass. kind: "all_reduce", "all_gather" or "reduce_scatter"."""

    kind: str
    count: int
    byte_per_tok: float  # message size per device and token of the step (of one replica)
    world_size: int


@dataclass(frozen=True)
class ForwardPlan:
    """One forward pass of one model in one precision on one device of its group (all pipeline stages together)."""

    gemms: tuple[Gemm, ...]
    experts: tuple[ExpertWork, ...]
    attention: tuple[AttentionWork, ...]
    states: tuple[StateWork, ...]
    messages: tuple[Message, ...]
    elementwise_byte_per_tok: float  # norms, residuals, rotary, activation functions, embedding row; all layers
    small_kernels: int  # kernels per pass that no other operator counts: norms, rotary, activations, bookkeeping
    launches: int  # all kernels per pass, as the host launches them one by one
    piecewise_launches: int  # what it launches where only the stretches between attention layers are graphs
    vocab_size: int
    logits_byte_per_sampled: float  # gathered from the devices that share the vocabulary


_SQUARE_BYTE = 4.0  # sums of squares are exchanged in fp32
STATE_BYTE = 4.0  # recurrent state is kept in fp32

# Kernels per layer of a fused engine (vLLM) besides its matrix products, attention and fused experts: counted in its
# model code, one per fused operation. Attention: norm with residual, rotary (and norms of q and k); the cache write
# belongs to attention. Latent attention: norms of both latents, rotary, concatenation, two absorbed products.
_SMALL = {Attention: 2, LatentAttention: 6, Mamba2: 5, ShortConvolution: 3}
_QK_NORM_KERNELS = 1
_DENSE_SMALL = 2  # norm with residual, activation
_MOE_SMALL = 2  # norm with residual, sum with the shared expert or scaling
_SHARED_SMALL = 1  # activation of the shared expert
_PASS_SMALL = 3  # embedding, final norm, gather of sampled rows
# Launches that count as one operator above: attention (cache write, kernel, reduction of split keys); fused experts
# (top-k, sort, permute, two products, activation, combine); activations narrowed before a product add one each.
_ATTENTION_LAUNCHES = 2
_EXPERT_LAUNCHES = 7


# Learned keys and values before each parallel stream of a model with parallel scaling (ParScale, arXiv:2505.10475).
STREAM_PREFIX_TOK = 48


def merging_parameters(hidden_size: int, streams: int) -> int:
    """Weights of the network that merges the outputs of parallel streams into one: (h P) x h, then h x P.

    (h + 1) h P, as ParScale's authors count them (arXiv:2505.10475).
    """
    return (hidden_size + 1) * hidden_size * streams if streams > 1 else 0


def plan_forward(model: Model, precision: Precision, parallel: Parallelism = SINGLE, streams: int = 1) -> ForwardPlan:
    """Derive the operators of one forward pass on one device; `streams`: of a model with parallel scaling."""
    rules = key_rules(model)
    gemms: Counter[Gemm] = Counter()
    experts, attention, states = [], [], []
    small, elementwise = _PASS_SMALL, model.hidden_size * precision.base_byte * 2.0  # embedding row read and written
    for group in model.layers:
        for gemm, count in _layer_gemms(group, model.hidden_size, precision, parallel).items():
            gemms[gemm] += count * group.count
        small += group.count * _small_kernels(group)
        elementwise += group.count * precision.base_byte * _elementwise_elements(group, model.hidden_size, parallel.tp)
        if group.mixer is not None:
            work = _mixer_work(group.mixer, group.count, parallel.tp, rules)
            (attention if isinstance(work, AttentionWork) else states).append(work)
        if isinstance(group.ffn, MoeFfn):
            experts.append(_expert_work(group, model.hidden_size, precision))
    vocab = -(-model.vocab_size // parallel.tp)
    gemms[Gemm(model.hidden_size, vocab, precision.moved_byte(False), precision.base_activation, 1, "sampled")] += 1
    if streams > 1:
        for inner, outer in ((model.hidden_size * streams, model.hidden_size), (model.hidden_size, streams)):
            gemms[Gemm(inner, outer, precision.moved_byte(False), precision.base_activation, 1, "sampled")] += 1
    found = tuple(
        Gemm(g.in_features, g.out_features, g.weight_byte, g.activation, count, g.rows) for g, count in gemms.items()
    )
    messages = _messages(model, precision, parallel)
    launches = (
        sum(gemm.count * (1 + _quantised(gemm.activation)) for gemm in found)
        + sum(work.count * (_EXPERT_LAUNCHES + 2 * _quantised(work.activation)) for work in experts)
        + _ATTENTION_LAUNCHES * sum(work.count for work in attention)
        + 2 * sum(work.count for work in states)
        + sum(message.count for message in messages)
        + small
    )
    mixers = sum(work.count for work in (*attention, *states))
    piecewise = (1 + _ATTENTION_LAUNCHES) * mixers + 1  # a graph before each mixer, its kernels, a graph at the end
    return ForwardPlan(
        found, tuple(experts), tuple(attention), tuple(states), messages, elementwise, small, launches, piecewise,
        vocab, 2.0 * vocab * (parallel.tp > 1),
    )  # fmt: skip


def _quantised(activation: str) -> bool:
    """Whether activations are narrowed by a kernel of its own before a product."""
    return activation not in SIXTEEN_BIT and activation != "fp32"


def _layer_gemms(group: LayerGroup, hidden: int, precision: Precision, parallel: Parallelism) -> Counter[Gemm]:
    """Matrix products of one layer that every token passes."""
    out: Counter[Gemm] = Counter()
    for p in group.projections(hidden):
        inner, outer = split_projection(p.name, p.in_features, p.out_features, group.mixer, parallel.tp)
        quantised = precision.quantises(p.name)
        byte = precision.moved_byte(quantised)
        activation = precision.activations if quantised else precision.base_activation
        out[Gemm(inner, outer, byte, activation)] += p.count
    return out


def _expert_work(group: LayerGroup, hidden: int, precision: Precision) -> ExpertWork:
    ffn = group.ffn
    return ExpertWork(
        group.count, hidden, ffn.expert_intermediate_size, ffn.experts, ffn.experts_per_token, ffn.gated,
        precision.moved_byte(True), precision.activations, expert_kernel(precision),
    )  # fmt: skip


def expert_kernel(precision: Precision) -> str:
    """The parameter group of the fused-experts kernels that a precision runs on."""
    weights, activations = precision.weights, precision.activations
    if precision.marlin and weights in FOUR_BIT:
        return "moe4_weight_only"
    if activations in SIXTEEN_BIT or activations == "fp32":
        return {"int4": "moe4_weight_only", "mxfp4": "moe_mxfp4", "nvfp4": "moe_mxfp4"}.get(weights, "moe16")
    if weights == "mxfp4":
        return "moe_mxfp4_a8"
    return {"nvfp4": "moe_nvfp4", "fp8-block": "moe8_block"}.get(weights, "moe8")


def _small_kernels(group: LayerGroup) -> int:
    count = 0
    if group.mixer is not None:
        count += _SMALL[type(group.mixer)] + _QK_NORM_KERNELS * bool(getattr(group.mixer, "qk_norm", None))
    if isinstance(group.ffn, MoeFfn):
        count += _MOE_SMALL + _SHARED_SMALL * bool(group.ffn.shared_intermediate_size)
    elif group.ffn is not None:
        count += _DENSE_SMALL
    return count


def _elementwise_elements(group: LayerGroup, hidden: int, tp: int) -> float:
    """Elements read and written per token in one layer by everything that is no matrix product or attention."""
    elements = 0.0
    if group.mixer is not None:
        elements += 4.0 * hidden + _mixer_elements(group.mixer) / tp
    if group.ffn is not None:
        elements += 4.0 * hidden + _ffn_elements(group.ffn) / tp
    return elements


def _messages(model: Model, precision: Precision, parallel: Parallelism) -> tuple[Message, ...]:
    """Collectives of one pass: after attention and after the feed-forward part of each layer, after the embedding.

    Norms of queries and keys over all heads add one of their sums of squares (vLLM: MiniMaxText01RMSNormTP).

    With data-parallel attention and shared experts, tokens are gathered from all replicas before the experts and their
    results scattered back (vLLM's all-gather and reduce-scatter).
    """
    byte = model.hidden_size * precision.base_byte
    found: list[Message] = []
    if parallel.tp > 1:
        count = 1 + sum(group.count * (bool(group.mixer) + bool(group.ffn)) for group in model.layers)
        found.append(Message("all_reduce", count, byte, parallel.tp))
        whole = sum(group.count for group in model.layers if getattr(group.mixer, "qk_norm", None) == "full")
        if whole:  # a norm over all heads needs the mean squares of the other devices' queries and keys
            found.append(Message("all_reduce", whole, 2.0 * _SQUARE_BYTE, parallel.tp))
    if parallel.shared_experts:
        moe = sum(group.count for group in model.layers if isinstance(group.ffn, MoeFfn))
        found += [Message(kind, moe, byte, parallel.dp) for kind in ("all_gather", "reduce_scatter")]
    return tuple(found)


@singledispatch
def _mixer_work(mixer, count: int, tp: int, rules) -> AttentionWork | StateWork:
    raise TypeError(f"no operator model for mixer {type(mixer).__name__}")


@_mixer_work.register
def _(mixer: Attention, count: int, tp: int, rules) -> AttentionWork:
    q_heads, kv_heads = split_heads(mixer, tp)
    pair = 4.0 * q_heads * mixer.head_dim  # q.k and p.v, two FLOPs each
    return AttentionWork(
        count=count,
        rule=rules.index(mixer_rule(mixer)),
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=mixer.head_dim,
        decode_head_dim=mixer.head_dim,
        kv_elements_per_tok=2 * kv_heads * mixer.head_dim,
        query_elements_per_tok=2 * q_heads * mixer.head_dim,
        prefill_query_elements_per_tok=2 * q_heads * mixer.head_dim,
        prefill_flop_per_pair=pair,
        decode_flop_per_pair=pair,
    )


@_mixer_work.register
def _(mixer: LatentAttention, count: int, tp: int, rules) -> AttentionWork:
    # DeepSeek-V2, arXiv:2405.04434, section 2.1: prefill expands keys and values per head; decode absorbs the
    # up-projections, so that every head attends to the shared latent (kv_lora_rank + rope part) directly.
    q_heads, kv_heads = split_heads(mixer, tp)
    latent = mixer.kv_elements_per_token
    return AttentionWork(
        count=count,
        rule=rules.index(mixer_rule(mixer)),
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=mixer.qk_head_dim,
        decode_head_dim=latent,
        kv_elements_per_tok=latent,
        query_elements_per_tok=q_heads * (latent + mixer.kv_lora_rank),
        prefill_query_elements_per_tok=q_heads * (mixer.qk_head_dim + mixer.v_head_dim),
        expand_flop_per_cached_tok=2.0 * mixer.kv_lora_rank * q_heads * (mixer.qk_nope_head_dim + mixer.v_head_dim),
        prefill_flop_per_pair=2.0 * q_heads * (mixer.qk_head_dim + mixer.v_head_dim),
        decode_flop_per_pair=2.0 * q_heads * (latent + mixer.kv_lora_rank),
    )


@_mixer_work.register
def _(mixer: Mamba2, count: int, tp: int, rules) -> StateWork:
    # State space duality, arXiv:2405.21060: state of heads x head_dim x state_size kept in fp32; per token the
    # state is decayed, updated and read: about 6 FLOPs per element.
    convolution = 2.0 * mixer.conv_size * mixer.conv_kernel
    flop = 6.0 * mixer.inner_size * mixer.state_size + convolution
    return StateWork(count, STATE_BYTE * mixer.state_elements / tp, flop / tp)


@_mixer_work.register
def _(mixer: ShortConvolution, count: int, tp: int, rules) -> StateWork:
    return StateWork(count, STATE_BYTE * mixer.state_elements / tp, 2.0 * mixer.width * mixer.kernel_size / tp)


def _mixer_elements(mixer) -> float:
    """Elements read and written per token by rotary embedding, cache write and gating of one mixer."""
    if isinstance(mixer, Attention):
        return 2.0 * (mixer.q_width + 2 * mixer.kv_width)
    if isinstance(mixer, LatentAttention):
        return 2.0 * mixer.q_heads * (mixer.qk_head_dim + mixer.v_head_dim)
    if isinstance(mixer, Mamba2):
        return 6.0 * mixer.inner_size
    return 6.0 * mixer.width


def _ffn_elements(ffn: DenseFfn | MoeFfn) -> float:
    """Elements read and written per token by the activation function; that of routed experts belongs to them."""
    if isinstance(ffn, DenseFfn):
        return (3.0 if ffn.gated else 2.0) * ffn.intermediate_size
    return 3.0 * ffn.shared_intermediate_size
