"""Llama and its many relatives: attention (grouped or latent), gated feed-forward or experts, RMS norms.

What differs between the families and is not written in their config.json stands in `FAMILIES`; it is what their
modelling code in Hugging Face transformers (or in the model's repository) does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from simulator.model.architecture import Model, group_layers
from simulator.model.families.experts import read_ffns
from simulator.model.fields import Fields
from simulator.model.layers import Attention, LatentAttention, Mixer


@dataclass(frozen=True)
class Family:
    """Facts about a model_type that its config.json leaves to the code.

    `window`: which layers have the sliding window when `layer_types` does not say: "none", "all", "qwen" (from
    layer `max_window_layers` on, if `use_sliding_window`) or "pattern" (all but every n-th).
    `defaults`: values of fields that published config.json files omit.
    """

    qkv_bias: bool | None = None  # None: as field attention_bias says
    output_bias: bool | None = None
    qk_norm: str | None = None
    norms_per_layer: int = 2
    tied: bool = False
    window: str = "none"
    sinks: bool = False
    diffusion: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


_GEMMA3 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "deci": Family(),
    "granite": Family(tied=True),
    "internlm": Family(),
    "mistral": Family(window="all"),
    "mixtral": Family(window="all"),
    "phi3": Family(window="all"),
    "qwen": Family(qkv_bias=True, output_bias=False),
    "qwen2": Family(qkv_bias=True, output_bias=False, window="qwen"),
    "qwen2_moe": Family(qkv_bias=True, output_bias=False, window="qwen"),
    "qwen3": Family(qk_norm="head", window="qwen"),
    "qwen3_moe": Family(qk_norm="head", window="qwen"),
    "qwen3_vl_text": Family(qk_norm="head", window="qwen"),
    "qwen3_vl_moe_text": Family(qk_norm="head", window="qwen"),
    "Dream": Family(qkv_bias=True, output_bias=False, window="qwen", diffusion=True),
    "olmo2": Family(qk_norm="full"),
    "gemma": Family(tied=True),
    "gemma2": Family(norms_per_layer=4, tied=True, window="pattern", defaults={"sliding_window_pattern": 2}),
    "gemma3_text": Family(
        qk_norm="head",
        norms_per_layer=4,
        tied=True,
        window="pattern",
        defaults={**_GEMMA3, "sliding_window_pattern": 6, "max_position_embeddings": 131072},
    ),
    "gpt_oss": Family(window="pattern", sinks=True, defaults={"sliding_window_pattern": 2}),
    "llama4_text": Family(qk_norm="unweighted", window="pattern", defaults={"sliding_window_pattern": 4}),
    "minimax_m2": Family(qk_norm="full"),
    "deepseek_v2": Family(),
    "deepseek_v3": Family(),
    "kimi_k2": Family(),
}
UNKNOWN = Family(window="all")


def read(fields: Fields) -> Model:
    """A decoder-only transformer in Llama's field names; unknown model types are read this way too."""
    model_type = fields.text("model_type", default="")
    family = FAMILIES.get(model_type, UNKNOWN)
    fields = fields.with_defaults(family.defaults)
    hidden_size = fields.count("hidden_size")
    count = fields.count("num_hidden_layers")
    ffns = read_ffns(fields, count, model_type)
    norms = family.norms_per_layer * hidden_size
    return Model(
        name="",
        architecture=model_type or "unknown",
        hidden_size=hidden_size,
        vocab_size=fields.count("vocab_size"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=family.tied),
        max_position_embeddings=fields.count("max_position_embeddings", "seq_length"),
        layers=group_layers((mixer, ffn, norms) for mixer, ffn in zip(_mixers(fields, count, family), ffns)),
        diffusion=family.diffusion,
        final_norm_parameters=hidden_size,
    )


def read_llada(fields: Fields) -> Model:
    """LLaDA: a bidirectional Llama under OLMo's older field names; text is made by masked diffusion."""
    names = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
        "attention_bias": "include_bias",
        "mlp_bias": "include_bias",
    }
    for own in ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "max_sequence_length"):
        fields.count(own)  # so that a complaint names the field as it stands in the file
    renamed = {standard: fields.values[own] for standard, own in names.items() if own in fields}
    renamed["vocab_size"] = fields.count("embedding_size", "vocab_size")  # the table is padded to embedding_size
    return read(Fields({**renamed, "model_type": "llada"}, fields.source, fields.prefix))


FAMILIES["llada"] = Family(diffusion=True)


def read_heads(fields: Fields, hidden_size: int) -> tuple[int, int, int]:
    """(query heads, KV heads, head_dim); head_dim follows from hidden_size where it is not written."""
    q_heads = fields.count("num_attention_heads")
    kv_heads = fields.count("num_key_value_heads", default=q_heads)
    _check_groups(fields, "num_key_value_heads", q_heads, kv_heads)
    head_dim = fields.optional_count("head_dim", "kv_channels", "attention_head_dim")
    if head_dim is None:
        if hidden_size % q_heads:
            expected = f"expected a multiple of num_attention_heads {q_heads}"
            raise fields.error("hidden_size", f"found {hidden_size}, {expected}")
        head_dim = hidden_size // q_heads
    return q_heads, kv_heads, head_dim


def _check_groups(fields: Fields, name: str, q_heads: int, kv_heads: int) -> None:
    if kv_heads < 1 or q_heads % kv_heads:
        raise fields.error(name, f"found {kv_heads}, expected a divisor of num_attention_heads {q_heads}")


def _mixers(fields: Fields, count: int, family: Family) -> list[Mixer]:
    if "kv_lora_rank" in fields:
        return [_latent(fields)] * count
    q_heads, kv_heads, head_dim = read_heads(fields, fields.count("hidden_size"))
    kv_per_layer = fields.optional_list("num_key_value_heads_per_layer", int, count) or [kv_heads] * count
    for layer, heads in enumerate(kv_per_layer):
        _check_groups(fields, f"num_key_value_heads_per_layer[{layer}]", q_heads, heads)
    bias = fields.flag("attention_bias", "bias", default=False)
    has_qk_norm = fields.flag("use_qk_norm", default=family.qk_norm is not None)
    return [
        Attention(
            q_heads=q_heads,
            kv_heads=heads,
            head_dim=head_dim,
            window_tok=window,
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            output_bias=bias if family.output_bias is None else family.output_bias,
            qk_norm=(family.qk_norm or "head") if has_qk_norm else None,
            sinks=family.sinks,
            causal=not family.diffusion,
            chunked=chunked,
        )
        for heads, (window, chunked) in zip(kv_per_layer, _windows(fields, count, family))
    ]


def _latent(fields: Fields) -> LatentAttention:
    return LatentAttention(
        q_heads=fields.count("num_attention_heads"),
        q_lora_rank=fields.optional_count("q_lora_rank"),
        kv_lora_rank=fields.count("kv_lora_rank"),
        qk_nope_head_dim=fields.count("qk_nope_head_dim"),
        qk_rope_head_dim=fields.count("qk_rope_head_dim"),
        v_head_dim=fields.count("v_head_dim"),
    )


def _windows(fields: Fields, count: int, family: Family) -> list[tuple[int | None, bool]]:
    """Per layer: (window in tokens or None, whether it is a chunk)."""
    kinds = fields.optional_list("layer_types", str, count) or _layer_types(fields, count, family)
    limit = fields.count("max_position_embeddings", "seq_length")
    windows: list[tuple[int | None, bool]] = []
    for layer, kind in enumerate(kinds):
        if kind == "full_attention":
            windows.append((None, False))
        elif kind == "sliding_attention":
            window = fields.count("sliding_window")
            windows.append((window if window < limit else None, False))  # a window as long as the context is none
        elif kind == "chunked_attention":
            windows.append((fields.count("attention_chunk_size"), True))
        else:
            expected = "full_attention, sliding_attention or chunked_attention"
            raise fields.error(f"layer_types[{layer}]", f"found '{kind}', expected {expected}")
    return windows


def _layer_types(fields: Fields, count: int, family: Family) -> list[str]:
    """Hugging Face's `layer_types` for configs that are older than that field."""
    local = "chunked_attention" if "attention_chunk_size" in fields else "sliding_attention"
    if local == "chunked_attention" and fields.values.get("no_rope_layers"):
        # Llama 4: 1 where positions are rotary, and only there attention is chunked.
        rotary = fields.optional_list("no_rope_layers", int, count) or []
        return [local if flag else "full_attention" for flag in rotary]
    switched_on = fields.flag("use_sliding_window", default=family.window != "qwen")
    if local == "sliding_attention" and not ("sliding_window" in fields and switched_on and family.window != "none"):
        return ["full_attention"] * count
    if family.window == "qwen":
        first = fields.whole("max_window_layers", default=28)
        return ["full_attention" if layer < first else local for layer in range(count)]
    if family.window == "pattern":
        every = fields.count("sliding_window_pattern", "_sliding_window_pattern")
        return [local if (layer + 1) % every else "full_attention" for layer in range(count)]
    return [local] * count
