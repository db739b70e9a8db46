"""What one forward pass DOES: operators with FLOPs, bytes and kernels, derived from the architecture.

Nothing here knows a device's speed. A `ForwardPlan` is computed once per (model, precision); a step then only
scales it with the number of tokens and reads the KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from simulator.batch import PrefillChunk
from simulator.model import Model
from simulator.model.layers import (
    Attention,
    DenseFfn,
    LatentAttention,
    Mamba2,
    MoeFfn,
    Projection,
    ShortConvolution,
)
from simulator.precision import Precision


@dataclass(frozen=True)
class Gemm:
    """`count` matrix products per pass, each rows x in_features times out_features x in_features.

    rows: "tokens" = every new token, "sampled" = only positions that get logits, "experts" = tokens routed to
    each of the touched experts (grouped GEMM).
    """

    in_features: int
    out_features: int
    count: int
    weight_byte: float  # per weight
    quantised: bool  # runs in the precision's activation type; otherwise in its base type
    rows: str = "tokens"
    experts: int = 0
    experts_per_token: int = 0


@dataclass(frozen=True)
class AttentionWork:
    """Attention of `count` layers that share heads and window.

    `kv_elements_per_tok` are stored per layer and token; `*_flop_per_pair` per layer, per (query, key) pair.
    """

    count: int
    kv_elements_per_tok: int
    query_elements_per_tok: int  # queries read and outputs written when decoding, per layer and token
    prefill_query_elements_per_tok: int  # the same in prefill
    prefill_flop_per_pair: float
    decode_flop_per_pair: float
    window_tok: int | None
    causal: bool
    expand_flop_per_cached_tok: float = 0.0  # prefill behind a compressed cache: keys and values made again
    chunked: bool = False  # the window is the token's own chunk of window_tok positions, not the latest ones

    def keys_read(self, chunk: PrefillChunk) -> tuple[float, float]:
        """((query, key) pairs, KV tokens read) of one prefill chunk in one layer."""
        new, cached = chunk.new_tok, chunk.cached_tok
        if not self.causal:
            return float(new) * (cached + new), float(cached + new)
        first, last = cached + 1, cached + new  # keys seen by the first and the last query
        window = self.window_tok
        if window is not None and self.chunked:
            pairs = _chunk_pairs(last, window) - _chunk_pairs(cached, window)
            return pairs, float(last - cached // window * window)
        if window is None or last <= window:
            return new * (first + last) / 2.0, float(last)
        growing = max(0, window - cached)  # queries that still see everything
        pairs = growing * (first + window) / 2.0 + (new - growing) * float(window)
        return pairs, float(min(last, new + window - 1))

    def decode_keys(self, context_tok: np.ndarray, steps: int) -> np.ndarray:
        """Keys read by one decode step in one layer, summed over sequences; float array of shape (steps,).

        Step j sees min(context + j + 1, window) keys per sequence. Closed form per step: sequences below the
        window grow by one each, the others stay.
        """
        n, j = len(context_tok), np.arange(steps)
        first = np.asarray(context_tok, dtype=np.int64) + 1
        if self.window_tok is None or int(first.max(initial=0)) + steps <= self.window_tok:
            return float(first.sum()) + n * j.astype(float)
        if self.chunked:
            return ((first[:, None] - 1 + j) % self.window_tok + 1).sum(axis=0).astype(float)
        first = np.sort(first)
        prefix = np.concatenate(([0], np.cumsum(first)))
        below = np.searchsorted(first, self.window_tok - j, side="left")
        return (prefix[below] + below * j + (n - below) * self.window_tok).astype(float)


def _chunk_pairs(tokens: int, chunk: int) -> float:
    """(query, key) pairs of the first `tokens` positions when each sees its own chunk up to itself."""
    whole, rest = divmod(tokens, chunk)
    return whole * chunk * (chunk + 1) / 2.0 + rest * (rest + 1) / 2.0


@dataclass(frozen=True)
class StateWork:
    """Recurrent mixers (Mamba2, short convolution) of `count` layers: state traffic and FLOPs."""

    count: int
    state_byte_per_sequence: float  # held per layer and sequence, read and written once per step
    flop_per_tok: float


@dataclass(frozen=True)
class ForwardPlan:
    """One forward pass of one model in one precision."""

    gemms: tuple[Gemm, ...]
    attention: tuple[AttentionWork, ...]
    states: tuple[StateWork, ...]
    elementwise_byte_per_tok: float  # norms, residuals, rotary, activation functions, embedding row; all layers
    kernels: int  # kernels launched per pass
    vocab_size: int


STATE_BYTE = 4.0  # recurrent state is kept in fp32

# Kernels per layer of a fused engine (vLLM): counted in its model code, one per fused operation.
# Attention: norm, qkv, rotary, cache write, attention, output projection.
_ATTENTION_KERNELS = 6
_LATENT_KERNELS = 10  # down and up projections of q and kv, their norms, absorbed products
_MAMBA_KERNELS = 7  # norm, in-projection, convolution, scan, gate norm, out-projection, state write
_CONVOLUTION_KERNELS = 5
_DENSE_KERNELS = 4  # norm, gate+up, activation, down
_MOE_KERNELS = 9  # norm, router, top-k, permute, two grouped products, activation, combine, scale
_SHARED_EXPERT_KERNELS = 3
_PASS_KERNELS = 4  # embedding, final norm, gather of sampled rows, output head


def plan_forward(model: Model, precision: Precision) -> ForwardPlan:
    """Derive the operators of one forward pass."""
    gemms: list[Gemm] = []
    attention: list[AttentionWork] = []
    states: list[StateWork] = []
    element = precision.base_byte
    byte_per_tok = model.hidden_size * element * 2.0  # embedding row read, hidden state written
    kernels = _PASS_KERNELS
    for group in model.layers:
        if group.mixer is not None:
            _add_gemms(gemms, group.mixer.projections(model.hidden_size), group.count, precision)
            kernels += group.count * _mixer_kernels(group.mixer)
            byte_per_tok += group.count * element * (4.0 * model.hidden_size + _mixer_elements(group.mixer))
            work = _mixer_work(group.mixer, group.count)
            (attention if isinstance(work, AttentionWork) else states).append(work)
        if group.ffn is not None:
            _add_gemms(gemms, group.ffn.projections(model.hidden_size), group.count, precision)
            byte_per_tok += group.count * element * (4.0 * model.hidden_size + _ffn_elements(group.ffn))
            kernels += group.count * _DENSE_KERNELS
            if isinstance(group.ffn, MoeFfn):
                _add_experts(gemms, group.ffn, model.hidden_size, group.count, precision)
                kernels += group.count * (_MOE_KERNELS - _DENSE_KERNELS)
                kernels += group.count * _SHARED_EXPERT_KERNELS * bool(group.ffn.shared_intermediate_size)
    gemms.append(Gemm(model.hidden_size, model.vocab_size, 1, precision.base_byte, False, "sampled"))
    return ForwardPlan(tuple(gemms), tuple(attention), tuple(states), byte_per_tok, kernels, model.vocab_size)


def _add_gemms(gemms: list[Gemm], projections: tuple[Projection, ...], layers: int, precision: Precision) -> None:
    for p in projections:
        quantised = is_quantised(p, precision)
        byte = precision.weight_byte if quantised else precision.base_byte
        gemms.append(Gemm(p.in_features, p.out_features, p.count * layers, byte, quantised))


def is_quantised(projection: Projection, precision: Precision) -> bool:
    """Whether the weight format applies to a projection that every token passes: never to routers and gates."""
    return not precision.experts_only and projection.name not in ("router", "shared_gate")


def _add_experts(gemms: list[Gemm], ffn: MoeFfn, hidden_size: int, layers: int, precision: Precision) -> None:
    for p in ffn.expert_projections(hidden_size):
        gemms.append(
            Gemm(
                p.in_features,
                p.out_features,
                p.count * layers,
                precision.weight_byte,
                True,
                "experts",
                ffn.experts,
                ffn.experts_per_token,
            )
        )


@singledispatch
def _mixer_work(mixer, count: int) -> AttentionWork | StateWork:
    raise TypeError(f"no operator model for mixer {type(mixer).__name__}")


@_mixer_work.register
def _(mixer: Attention, count: int) -> AttentionWork:
    pair = 4.0 * mixer.q_width  # q.k and p.v, two FLOPs each
    return AttentionWork(
        count=count,
        kv_elements_per_tok=mixer.kv_elements_per_token,
        query_elements_per_tok=2 * mixer.q_width,
        prefill_query_elements_per_tok=2 * mixer.q_width,
        prefill_flop_per_pair=pair,
        decode_flop_per_pair=pair,
        window_tok=mixer.window_tok,
        causal=mixer.causal,
        chunked=mixer.chunked,
    )


@_mixer_work.register
def _(mixer: LatentAttention, count: int) -> AttentionWork:
    # DeepSeek-V2, arXiv:2405.04434, section 2.1: prefill expands keys and values per head; decode absorbs the
    # up-projections, so that every head attends to the shared latent (kv_lora_rank + rope part) directly.
    latent = mixer.kv_elements_per_token
    return AttentionWork(
        count=count,
        kv_elements_per_tok=mixer.kv_elements_per_token,
        query_elements_per_tok=mixer.q_heads * (latent + mixer.kv_lora_rank),
        prefill_query_elements_per_tok=mixer.q_heads * (mixer.qk_head_dim + mixer.v_head_dim),
        expand_flop_per_cached_tok=2.0
        * mixer.kv_lora_rank
        * mixer.q_heads
        * (mixer.qk_nope_head_dim + mixer.v_head_dim),
        prefill_flop_per_pair=2.0 * mixer.q_heads * (mixer.qk_head_dim + mixer.v_head_dim),
        decode_flop_per_pair=2.0 * mixer.q_heads * (latent + mixer.kv_lora_rank),
        window_tok=mixer.window_tok,
        causal=mixer.causal,
    )


@_mixer_work.register
def _(mixer: Mamba2, count: int) -> StateWork:
    # State space duality, arXiv:2405.21060: state of heads x head_dim x state_size kept in fp32; per token the
    # state is decayed, updated and read: about 6 FLOPs per element.
    convolution = 2.0 * mixer.conv_size * mixer.conv_kernel
    flop = 6.0 * mixer.inner_size * mixer.state_size + convolution
    return StateWork(count, STATE_BYTE * mixer.state_elements, flop)


@_mixer_work.register
def _(mixer: ShortConvolution, count: int) -> StateWork:
    return StateWork(count, STATE_BYTE * mixer.state_elements, 2.0 * mixer.width * mixer.kernel_size)


def _mixer_kernels(mixer) -> int:
    by_type = {
        Attention: _ATTENTION_KERNELS,
        LatentAttention: _LATENT_KERNELS,
        Mamba2: _MAMBA_KERNELS,
        ShortConvolution: _CONVOLUTION_KERNELS,
    }
    return by_type[type(mixer)]


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
    """Elements read and written per token by the activation function (and by the experts' permutation)."""
    if isinstance(ffn, DenseFfn):
        return (3.0 if ffn.gated else 2.0) * ffn.intermediate_size
    routed = ffn.experts_per_token * (ffn.expert_intermediate_size * (3.0 if ffn.gated else 2.0))
    return routed + 3.0 * ffn.shared_intermediate_size


def touched_experts(experts: int, experts_per_token: int, tokens: int) -> float:
    """Expected number of distinct experts that `tokens` uniformly routed tokens reach: E (1 - (1 - k/E)^tokens)."""
    return experts * (1.0 - (1.0 - experts_per_token / experts) ** tokens)
