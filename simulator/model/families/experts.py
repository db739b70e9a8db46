"""Feed-forward parts of a transformer from config.json: dense, mixture of experts, or both in turn."""

from __future__ import annotations

from simulator.model.fields import Fields
from simulator.model.layers import DenseFfn, Ffn, MoeFfn

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def read_ffns(fields: Fields, count: int, model_type: str) -> list[Ffn]:
    """One feed-forward part per layer."""
    experts = fields.whole(*_EXPERTS)
    if not experts:
        return [_dense(fields, model_type)] * count
    sparse = _sparse_layers(fields, count)
    moe = read_moe(fields, model_type) if any(sparse) else None
    dense = None if all(sparse) else _dense(fields, model_type)
    return [moe if is_sparse else dense for is_sparse in sparse]


def _dense(fields: Fields, model_type: str) -> DenseFfn:
    width = fields.count("intermediate_size_mlp", "intermediate_size")  # Llama 4 has both: the second is the experts'
    if model_type == "qwen":
        width //= 2  # the first Qwen counts gate and up together
    return DenseFfn(width, gated=True, bias=fields.flag("mlp_bias"))


def read_moe(fields: Fields, model_type: str, gated: bool = True) -> MoeFfn:
    """The mixture of experts of one layer; `gated=False` for families whose experts have no gate."""
    experts = fields.count(*_EXPERTS)
    per_token = fields.count("num_experts_per_tok", "experts_per_token")
    if per_token > experts:
        raise fields.error("num_experts_per_tok", f"found {per_token}, expected at most {experts} (experts)")
    gpt_oss = model_type == "gpt_oss"
    return MoeFfn(
        experts=experts,
        experts_per_token=per_token,
        expert_intermediate_size=fields.count("moe_intermediate_size", "intermediate_size"),
        shared_intermediate_size=_shared_width(fields, model_type),
        gated=gated,
        bias=gpt_oss,
        router_bias=gpt_oss or fields.flag("use_routing_bias") or _corrected(fields, model_type),
        shared_gate=model_type == "qwen2_moe",
    )


def _corrected(fields: Fields, model_type: str) -> bool:
    """Whether a per-expert correction is added to the router's scores (DeepSeek-V3, arXiv:2412.19437, eq. 16)."""
    return fields.text("topk_method", default="") == "noaux_tc" or model_type in ("deepseek_v3", "nemotron_h")


def _shared_width(fields: Fields, model_type: str) -> int:
    """Summed width of the experts that always run; 0 without."""
    if model_type == "llama4_text":
        return fields.count("intermediate_size")
    shared = fields.whole("n_shared_experts")
    one = fields.whole("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    if one:
        return one * max(shared, 1)
    if shared:
        return shared * fields.count("moe_intermediate_size", "intermediate_size")
    return fields.whole("shared_intermediate_size")


def _sparse_layers(fields: Fields, count: int) -> list[bool]:
    """Which layers have experts; every family that mixes has a field of its own for it."""
    listed = fields.optional_list("moe_layers", int)
    if listed is not None:
        return [layer in listed for layer in range(count)]
    dense = set(fields.optional_list("mlp_only_layers", int) or ())
    first = fields.whole("first_k_dense_replace")
    step = fields.count("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    frequency = fields.values.get("moe_layer_freq")
    if isinstance(frequency, list):
        per_layer = fields.optional_list("moe_layer_freq", int, count) or []
        return [bool(flag) for flag in per_layer]
    every = fields.count("moe_layer_freq", default=1)
    return [
        layer not in dense and layer >= first and (layer + 1) % step == 0 and layer % every == 0
        for layer in range(count)
    ]
