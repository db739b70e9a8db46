"""Models that mix attention with mixers of constant state: Nemotron-H (Mamba-2) and LFM2 (short convolutions)."""

from __future__ import annotations

from simulator.model.architecture import Model, group_layers
from simulator.model.families.experts import read_moe
from simulator.model.families.transformer import read_heads
from simulator.model.fields import Fields
from simulator.model.layers import Attention, DenseFfn, Ffn, Mamba2, Mixer, ShortConvolution


def read_nemotron_h(fields: Fields) -> Model:
    """Nemotron-H (arXiv:2504.03624): each layer is one of Mamba-2 (M), attention (*), feed-forward (-), experts (E)."""
    hidden_size = fields.count("hidden_size")
    pattern = fields.text("hybrid_override_pattern")
    count = fields.count("num_hidden_layers", default=len(pattern))
    if len(pattern) != count:
        found = f"found {len(pattern)} letters, expected one per layer: num_hidden_layers {count}"
        raise fields.error("hybrid_override_pattern", found)
    parts: dict[str, tuple[Mixer | None, Ffn | None]] = {}
    for letter in dict.fromkeys(pattern):
        parts[letter] = _nemotron_part(fields, letter, hidden_size)
    return Model(
        name="",
        architecture="nemotron_h",
        hidden_size=hidden_size,
        vocab_size=fields.count("vocab_size"),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        max_position_embeddings=fields.count("max_position_embeddings"),
        layers=group_layers((*parts[letter], hidden_size) for letter in pattern),
        final_norm_parameters=hidden_size,
    )


def _nemotron_part(fields: Fields, letter: str, hidden_size: int) -> tuple[Mixer | None, Ffn | None]:
    if letter == "M":
        mamba = Mamba2(
            num_heads=fields.count("mamba_num_heads"),
            head_dim=fields.count("mamba_head_dim"),
            state_size=fields.count("ssm_state_size"),
            n_groups=fields.count("n_groups"),
            conv_kernel=fields.count("conv_kernel", default=4),
            conv_bias=fields.flag("use_conv_bias", default=True),
            projection_bias=fields.flag("mamba_proj_bias", "use_bias"),
        )
        return mamba, None
    if letter == "*":
        bias = fields.flag("attention_bias")
        return Attention(*read_heads(fields, hidden_size), qkv_bias=bias, output_bias=bias), None
    if letter == "-":
        return None, DenseFfn(fields.count("intermediate_size"), gated=False, bias=fields.flag("mlp_bias"))
    if letter == "E":
        return None, read_moe(fields, "nemotron_h", gated=False)
    raise fields.error("hybrid_override_pattern", f"found '{letter}', expected only M, *, - and E")


def read_lfm2(fields: Fields) -> Model:
    """LFM2 (Liquid AI): gated short convolutions, and grouped-query attention in some layers."""
    hidden_size = fields.count("hidden_size")
    count = fields.count("num_hidden_layers")
    attention = Attention(*read_heads(fields, hidden_size), qk_norm="head")
    convolution = ShortConvolution(fields.count("conv_L_cache", default=3), fields.flag("conv_bias"), width=hidden_size)
    ffn = DenseFfn(_lfm2_width(fields))
    mixers = [attention if kind == "full_attention" else convolution for kind in _lfm2_kinds(fields, count)]
    return Model(
        name="",
        architecture="lfm2",
        hidden_size=hidden_size,
        vocab_size=fields.count("vocab_size"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", "tie_embedding", default=True),
        max_position_embeddings=fields.count("max_position_embeddings"),
        layers=group_layers((mixer, ffn, 2 * hidden_size) for mixer in mixers),
        final_norm_parameters=hidden_size,
    )


def _lfm2_kinds(fields: Fields, count: int) -> list[str]:
    kinds = fields.optional_list("layer_types", str, count)
    if kinds is None:
        indices = fields.optional_list("full_attn_idxs", int)
        if indices is None:
            raise fields.error("layer_types", "missing, expected a list (or the older full_attn_idxs)")
        return ["full_attention" if layer in indices else "conv" for layer in range(count)]
    for layer, kind in enumerate(kinds):
        if kind not in ("conv", "full_attention"):
            raise fields.error(f"layer_types[{layer}]", f"found '{kind}', expected conv or full_attention")
    return kinds


def _lfm2_width(fields: Fields) -> int:
    """Feed-forward width: the written one is adjusted as in Llama 1, 2/3 rounded up to a multiple (Lfm2MLP)."""
    width = fields.count("intermediate_size", "block_ff_dim")
    if not fields.flag("block_auto_adjust_ff_dim", default=True):
        return width
    multiplier = fields.number("block_ffn_dim_multiplier", default=1.0)
    multiple = fields.count("block_multiple_of", default=256)
    return -(-int(multiplier * int(2 * width / 3)) // multiple) * multiple
