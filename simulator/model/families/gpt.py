"""GPT-2 (and what Megatron-LM trains by default) and Phi-2: layer norms and biases everywhere, plain feed-forward."""

from __future__ import annotations

from simulator.model.architecture import Model
from simulator.model.families.transformer import read_heads
from simulator.model.fields import Fields
from simulator.model.layers import Attention, DenseFfn, LayerGroup


def read_gpt2(fields: Fields) -> Model:
    """GPT-2: learned positions, two layer norms per layer, output head tied to the token table."""
    hidden_size = fields.count("n_embd")
    heads = fields.count("n_head")
    if hidden_size % heads:
        raise fields.error("n_embd", f"found {hidden_size}, expected a multiple of n_head {heads}")
    positions = fields.count("n_positions", "n_ctx")
    mixer = Attention(heads, heads, hidden_size // heads, qkv_bias=True, output_bias=True)
    ffn = DenseFfn(fields.count("n_inner", default=4 * hidden_size), gated=False, bias=True)
    return Model(
        name="",
        architecture="gpt2",
        hidden_size=hidden_size,
        vocab_size=fields.count("vocab_size"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
        max_position_embeddings=positions,
        layers=(LayerGroup(fields.count("n_layer"), mixer, ffn, norm_parameters=4 * hidden_size),),
        final_norm_parameters=2 * hidden_size,
        position_embeddings=positions,
    )


def read_phi(fields: Fields) -> Model:
    """Phi-1.5 and Phi-2: attention and feed-forward side by side behind one layer norm; a biased output head."""
    hidden_size = fields.count("hidden_size")
    q_heads, kv_heads, head_dim = read_heads(fields, hidden_size)
    mixer = Attention(q_heads, kv_heads, head_dim, qkv_bias=True, output_bias=True)
    ffn = DenseFfn(fields.count("intermediate_size"), gated=False, bias=True)
    return Model(
        name="",
        architecture="phi",
        hidden_size=hidden_size,
        vocab_size=fields.count("vocab_size"),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        max_position_embeddings=fields.count("max_position_embeddings"),
        layers=(LayerGroup(fields.count("num_hidden_layers"), mixer, ffn, norm_parameters=2 * hidden_size),),
        final_norm_parameters=2 * hidden_size,
        lm_head_bias=True,
    )
