"""Model reader: published parameter counts, KV shapes, closed forms, growth laws, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import UserError
from simulator.model import (
    Attention,
    DenseFfn,
    LatentAttention,
    LayerGroup,
    Mamba2,
    Model,
    MoeFfn,
    ShortConvolution,
    default_ladder,
    list_models,
    load_model,
    read_config,
)
from simulator.model.fields import Fields
from simulator.model.huggingface import model_from_fields
from simulator.model.registry import CONFIGS, catalogue_entries, config_path

ENTRIES = catalogue_entries()
PUBLISHED = [(entry["id"], entry["published_parameters"]) for entry in ENTRIES if "published_parameters" in entry]
# Counts that Hugging Face reads from the weight files themselves, with nothing added or left out.
EXACT = [
    (entry["id"], entry["published_parameters"])
    for entry in ENTRIES
    if entry["parameter_source"] == "safetensors metadata on Hugging Face"
]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}
MOE = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def read(config: dict[str, Any]) -> Model:
    return model_from_fields(Fields(config, "config.json"), "test")


def windows(name: str) -> dict[int | None, int]:
    """Window -> number of layers with it."""
    counts: dict[int | None, int] = {}
    for group in load_model(name).layers:
        assert isinstance(group.mixer, Attention)
        counts[group.mixer.window_tok] = counts.get(group.mixer.window_tok, 0) + group.count
    return counts


# ---- published numbers


@pytest.mark.parametrize(("name", "published"), PUBLISHED)
def test_parameters_match_the_published_count_within_one_percent(name: str, published: int) -> None:
    assert load_model(name).parameters() == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(("name", "published"), EXACT)
def test_parameters_match_the_weight_files_exactly(name: str, published: int) -> None:
    assert load_model(name).parameters() == published


# Each publisher says whether the token table counts as active; the model cards and reports are followed here.
@pytest.mark.parametrize(
    ("name", "billions", "embedding"),
    [
        ("Qwen/Qwen3-30B-A3B", 3.3, True),  # model card
        ("Qwen/Qwen3-235B-A22B", 22.0, True),  # model card
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 35.0, True),  # model card
        ("openai/gpt-oss-20b", 3.61, False),  # arXiv:2508.10925, table 1
        ("openai/gpt-oss-120b", 5.13, False),  # arXiv:2508.10925, table 1
        ("deepseek-ai/DeepSeek-V3", 37.0, True),  # arXiv:2412.19437
        ("moonshotai/Kimi-K2.5", 32.0, True),  # Kimi K2 model card
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 12.9, True),  # arXiv:2401.04088
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 39.0, True),  # announcement
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 17.0, True),  # model card
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 17.0, True),  # model card
    ],
)
def test_active_parameters_match_the_published_count(name: str, billions: float, embedding: bool) -> None:
    assert load_model(name).active_parameters(embedding=embedding) == pytest.approx(billions * 1e9, rel=0.03)


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 2 * 8 * 128 * 32),
        ("meta-llama/Llama-2-7b-hf", 2 * 32 * 128 * 32),
        ("Qwen/Qwen3-32B", 2 * 8 * 128 * 64),
        ("deepseek-ai/DeepSeek-V3", 576 * 61),
        ("moonshotai/Kimi-K2.5", 576 * 61),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", 2 * 8 * 128 * 4),  # 4 attention layers of 56
        ("LiquidAI/LFM2.5-1.2B-Instruct", 2 * 8 * 64 * 6),  # 6 attention layers of 16
    ],
)
def test_kv_elements_per_token(name: str, elements: int) -> None:
    assert load_model(name).kv_elements_per_token == elements


def test_mamba_state_of_nemotron_nano() -> None:
    mambas = [group for group in load_model("nemotron-nano-9b-v2").layers if isinstance(group.mixer, Mamba2)]
    assert [group.count for group in mambas] == [27]
    # 128 heads of 80 channels, each with a state of 128; the convolution keeps 3 of 10240 + 2 x 8 x 128 channels.
    assert mambas[0].mixer.state_elements == 128 * 80 * 128 + 3 * (10240 + 2 * 8 * 128)
    assert mambas[0].ffn is None


def test_state_of_the_short_convolutions_of_lfm2() -> None:
    model = load_model("lfm2.5-1.2b")
    assert sum(group.count for group in model.layers if isinstance(group.mixer, ShortConvolution)) == 10
    assert model.state_elements == 10 * 2048 * 2


# ---- windows, kinds of layers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google/gemma-3-1b-it", {512: 22, None: 4}),
        ("google/gemma-3-27b-it", {1024: 52, None: 10}),
        ("openai/gpt-oss-20b", {128: 12, None: 12}),
        ("mistralai/Mistral-7B-v0.1", {4096: 32}),
        ("mistralai/Mistral-7B-Instruct-v0.3", {None: 32}),
        ("microsoft/Phi-3-mini-4k-instruct", {2047: 32}),
        ("Qwen/Qwen2.5-7B-Instruct", {None: 28}),  # has a sliding_window and use_sliding_window false
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {8192: 36, None: 12}),
    ],
)
def test_sliding_windows(name: str, expected: dict[int | None, int]) -> None:
    assert windows(name) == expected


def test_llama_4_windows_are_chunks() -> None:
    mixers = [group.mixer for group in load_model("llama-4-scout").layers]
    assert {(mixer.window_tok, mixer.chunked) for mixer in mixers} == {(8192, True), (None, False)}


def test_llama_4_maverick_alternates_dense_and_sparse_layers() -> None:
    layers = load_model("llama-4-maverick").layers
    assert sum(group.count for group in layers if isinstance(group.ffn, MoeFfn)) == 24
    assert {group.ffn.intermediate_size for group in layers if isinstance(group.ffn, DenseFfn)} == {16384}


def test_deepseek_v3_has_three_dense_layers_and_the_prediction_layer_is_left_out() -> None:
    model = load_model("deepseek-v3")
    assert [(group.count, type(group.ffn)) for group in model.layers] == [(3, DenseFfn), (58, MoeFfn)]
    assert any("multi-token prediction" in note for note in model.notes)


def test_gpt_oss_has_sinks_biases_and_quantised_experts() -> None:
    model = load_model("gpt-oss-20b")
    mixer, ffn = model.layers[0].mixer, model.layers[0].ffn
    assert mixer.sinks and mixer.qkv_bias and mixer.output_bias and ffn.bias and ffn.router_bias
    assert (model.quantisation, model.quantised_experts_only, model.torch_dtype) == ("mxfp4", True, "bf16")


@pytest.mark.parametrize("name", ["GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"])
def test_diffusion_models_attend_in_both_directions(name: str) -> None:
    model = load_model(name)
    assert model.diffusion
    assert not any(group.mixer.causal for group in model.layers)


def test_autoregressive_models_are_causal() -> None:
    model = load_model("qwen3-8b")
    assert not model.diffusion and all(group.mixer.causal for group in model.layers)


def test_decilm_has_grouped_query_attention_of_several_widths() -> None:
    model = load_model("decilm-7b")
    assert len({group.mixer.kv_heads for group in model.layers}) > 1
    assert model.num_layers == 32


def test_qwen2_slides_from_max_window_layers_on() -> None:
    config = {**LLAMA, "model_type": "qwen2", "num_hidden_layers": 6, "sliding_window": 100, "max_window_layers": 4}
    model = read({**config, "use_sliding_window": True})
    assert [(group.count, group.mixer.window_tok) for group in model.layers] == [(4, None), (2, 100)]


def test_a_window_that_is_switched_off_is_none() -> None:
    model = read({**LLAMA, "model_type": "shiny_new", "sliding_window": 100, "use_sliding_window": False})
    assert model.layers[0].mixer.window_tok is None


def test_layer_types_decide_over_the_family_rule() -> None:
    kinds = ["full_attention", "sliding_attention"]
    model = read({**LLAMA, "model_type": "mistral", "sliding_window": 16, "layer_types": kinds})
    assert [group.mixer.window_tok for group in model.layers] == [None, 16]


def test_a_window_as_long_as_the_context_is_no_window() -> None:
    model = read({**LLAMA, "model_type": "mistral", "sliding_window": 2048})
    assert model.layers[0].mixer.window_tok is None


# ---- closed forms, laws


@given(layers=st.integers(1, 60), heads=st.integers(1, 32), width=st.sampled_from([32, 64, 128]))
def test_gpt2_matches_its_closed_form(layers: int, heads: int, width: int) -> None:
    h, vocab, positions = heads * width, 50304, 2048
    config = {"model_type": "gpt2", "n_embd": h, "n_layer": layers, "n_head": heads, "vocab_size": vocab}
    expected = layers * (12 * h * h + 13 * h) + (vocab + positions) * h + 2 * h
    assert read({**config, "n_positions": positions}).parameters() == expected


@given(
    layers=st.integers(1, 60),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    group=st.integers(1, 8),
    ffn=st.integers(1, 4096),
    tied=st.booleans(),
)
def test_llama_matches_its_closed_form(layers: int, kv_heads: int, group: int, ffn: int, tied: bool) -> None:
    heads, d, vocab = kv_heads * group, 64, 1000
    h = heads * d
    config = {**LLAMA, "hidden_size": h, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"num_key_value_heads": kv_heads, "intermediate_size": ffn, "tie_word_embeddings": tied}
    model = read(config)
    per_layer = 2 * h * h + 2 * h * kv_heads * d + 3 * h * ffn + 2 * h
    assert model.parameters() == layers * per_layer + (1 if tied else 2) * vocab * h + h
    assert model.kv_elements_per_token == layers * 2 * kv_heads * d
    assert model.active_parameters() == model.parameters()


def test_latent_attention_matches_the_shapes_of_deepseek_v3() -> None:
    mixer = LatentAttention(128, 1536, 512, 128, 64, 128)
    projections = mixer.projections(7168)
    shapes = {projection.name: (projection.in_features, projection.out_features) for projection in projections}
    assert shapes == {
        "qkv_a": (7168, 1536 + 512 + 64),
        "q_b": (1536, 128 * 192),
        "kv_b": (512, 128 * 256),
        "attention_output": (128 * 128, 7168),
    }
    assert mixer.other_parameters(7168) == 1536 + 512


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_parts_sum_to_the_whole(entry: dict[str, Any]) -> None:
    model = load_model(entry["id"])
    h = model.hidden_size
    total = model.embedding_parameters() + model.lm_head_parameters() + model.final_norm_parameters
    for group in model.layers:
        for part in (group.mixer, group.ffn):
            if part is not None:
                total += group.count * sum(projection.parameters for projection in part.projections(h))
                total += group.count * part.other_parameters(h)
        if isinstance(group.ffn, MoeFfn):
            one = sum(projection.parameters for projection in group.ffn.expert_projections(h))
            total += group.count * group.ffn.experts * one
        total += group.count * group.norm_parameters
    assert total == model.parameters()
    assert model.active_parameters() <= model.parameters()
    assert (model.active_parameters() < model.parameters()) == model.sparse


@given(base=st.sampled_from([LLAMA, MOE]), more=st.integers(1, 40))
def test_parameters_grow_with_the_number_of_layers(base: dict[str, Any], more: int) -> None:
    grown = read({**base, "num_hidden_layers": base["num_hidden_layers"] + more})
    assert grown.parameters() > read(base).parameters()
    assert grown.active_parameters() > read(base).active_parameters()
    assert grown.kv_elements_per_token > read(base).kv_elements_per_token


@given(base=st.sampled_from([LLAMA, MOE]), factor=st.integers(2, 32))
def test_parameters_grow_with_the_hidden_size(base: dict[str, Any], factor: int) -> None:
    grown = read({**base, "hidden_size": base["hidden_size"] * factor})
    assert grown.parameters() > read(base).parameters()
    assert grown.active_parameters() > read(base).active_parameters()


@given(more=st.integers(1, 100))
def test_more_experts_cost_memory_but_are_hardly_active(more: int) -> None:
    small, large = read(MOE), read({**MOE, "num_experts": 8 + more})
    assert large.parameters() - small.parameters() == 2 * more * (3 * 64 * 32 + 64)  # experts, router columns
    assert large.active_parameters() - small.active_parameters() == 2 * more * 64  # router columns only


def test_tied_head_is_counted_once_and_still_runs() -> None:
    tied, untied = read({**LLAMA, "tie_word_embeddings": True}), read(LLAMA)
    assert tied.lm_head_parameters() == 0
    assert untied.parameters() - tied.parameters() == 1000 * 64
    assert tied.active_parameters(embedding=False) == untied.active_parameters(embedding=False)


def test_models_are_hashable_and_equal_by_value() -> None:
    assert len({read(MOE), read(MOE), read(LLAMA)}) == 2


def test_equal_layers_are_one_group() -> None:
    (group,) = read({**LLAMA, "num_hidden_layers": 7}).layers
    assert group == LayerGroup(7, Attention(4, 2, 16), DenseFfn(128), norm_parameters=128)


# ---- catalogue


def test_ids_and_aliases_are_unique() -> None:
    names = [name.lower() for entry in ENTRIES for name in (entry["id"], *entry["aliases"])]
    assert len(names) == len(set(names))
    assert all(alias == alias.lower() for entry in ENTRIES for alias in entry["aliases"])


def test_every_config_file_is_used_and_every_used_one_is_there() -> None:
    assert {config_path(entry) for entry in ENTRIES} == set(CONFIGS.glob("*.json"))


def test_aliases_lead_to_the_model_and_case_does_not_matter() -> None:
    for entry in ENTRIES:
        for alias in entry["aliases"]:
            assert load_model(alias) == load_model(entry["id"].upper())
            assert load_model(alias).name == entry["id"]


def test_list_models_has_every_entry_with_a_source() -> None:
    summaries = list_models()
    assert [summary.name for summary in summaries] == [entry["id"] for entry in ENTRIES]
    assert all(summary.source for summary in summaries)


def test_default_ladder_climbs() -> None:
    sizes = [load_model(name).parameters() for name in default_ladder()]
    assert len(sizes) > 3
    assert sizes == sorted(set(sizes))


def test_ids_that_share_a_config_keep_their_names() -> None:
    assert load_model("deepseek-r1").name == "deepseek-ai/DeepSeek-R1"
    assert load_model("deepseek-v3").layers == load_model("deepseek-r1").layers


# ---- reading by path


def write(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(json.dumps(config))
    return path


def test_a_config_is_read_by_file_and_by_directory(tmp_path: Path) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    file = write(directory / "config.json", LLAMA)
    by_file, by_directory = load_model(str(file)), load_model(directory)
    assert by_file == by_directory
    assert by_file.name == "my-model"
    assert load_model(str(write(tmp_path / "other.json", LLAMA))).name == "other"


def test_an_unknown_model_type_is_read_like_llama_and_says_so() -> None:
    model = read({**LLAMA, "model_type": "shiny_new"})
    assert model.parameters() == read(LLAMA).parameters()
    assert any("shiny_new" in note for note in model.notes)
    assert read(LLAMA).notes == ()


def test_a_nested_text_config_inherits_and_the_vision_tower_is_mentioned() -> None:
    # As published: gemma-3-4b-it leaves heads, head_dim and vocabulary to the class defaults.
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = {"model_type": "gemma3", "text_config": {**text, "sliding_window": 1024}, "torch_dtype": "float16"}
    model = read({**config, "vision_config": {"hidden_size": 1152}})
    assert model.parameters() == load_model("google/gemma-3-4b-it").parameters()
    assert model.torch_dtype == "fp16"
    assert any("vision" in note for note in model.notes)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "mxfp4"}, ("mxfp4", True)),
        ({"quant_method": "fp8"}, ("fp8", False)),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8-block", False)),
        ({"quant_method": "awq", "bits": 4}, ("int4", False)),
        ({"quant_method": "gptq", "bits": 8}, ("int8", False)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("int4", False)),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ("nvfp4", False)),
    ],
)
def test_quantisation_of_the_checkpoint(config: dict[str, Any], expected: tuple[str, bool]) -> None:
    model = read({**LLAMA, "quantization_config": config})
    assert (model.quantisation, model.quantised_experts_only) == expected


def test_kimi_has_int4_experts_beside_bf16_attention() -> None:
    model = load_model("kimi-k2.5")
    assert (model.quantisation, model.quantised_experts_only, model.torch_dtype) == ("int4", True, "bf16")


# ---- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, ["hidden_size", "missing", "integer"]),
        ({"num_hidden_layers": None}, ["num_hidden_layers", "missing"]),
        ({"vocab_size": "many"}, ["vocab_size", "'many'", "an integer"]),
        ({"num_hidden_layers": 2.5}, ["num_hidden_layers", "2.5", "an integer"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True", "an integer"]),
        ({"intermediate_size": 0}, ["intermediate_size", "found 0", "at least 1"]),
        ({"num_attention_heads": -4}, ["num_attention_heads", "found -4"]),
        ({"hidden_size": 66}, ["hidden_size", "66", "multiple of num_attention_heads 4"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "found 3", "divisor"]),
        ({"num_key_value_heads_per_layer": [2]}, ["num_key_value_heads_per_layer", "found 1 entries", "2"]),
        ({"num_key_value_heads_per_layer": [2, 0]}, ["num_key_value_heads_per_layer[1]", "found 0"]),
        ({"layer_types": ["full_attention", "magic"]}, ["layer_types[1]", "'magic'", "sliding_attention"]),
        ({"layer_types": ["full_attention", 1]}, ["layer_types[1]", "1", "a text"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["sliding_window", "missing"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'", "true or false"]),
        ({"torch_dtype": "float7"}, ["torch_dtype", "'float7'", "bfloat16"]),
        ({"num_experts": 4, "num_experts_per_tok": 5}, ["num_experts_per_tok", "found 5", "4"]),
        ({"quantization_config": {"quant_method": "magic"}}, ["quantization_config.quant_method", "'magic'"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, ["quantization_config.bits", "found 3"]),
        ({"quantization_config": []}, ["quantization_config", "an object"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder", "decoder-only"]),
        ({"block_configs": [{}]}, ["block_configs", "cannot be represented"]),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, ["BertForMaskedLM", "writes text"]),
        ({"model_type": "gpt2"}, ["n_embd", "missing"]),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "*?"}, ["hybrid_override_pattern", "'?'"]),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "**-"}, ["3 letters", "num_hidden_layers 2"]),
        ({"model_type": "llada"}, ["d_model", "missing"]),
        ({"model_type": 7}, ["model_type", "7", "a text"]),
        ({"text_config": {"model_type": "llama"}}, ["text_config.hidden_size", "missing"]),
    ],
)
def test_a_bad_field_gives_one_sentence_with_file_and_field(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    path = write(tmp_path / "broken.json", {**LLAMA, **change})
    with pytest.raises(UserError) as caught:
        read_config(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*no such file"):
        load_model(tmp_path / "nowhere" / "config.json")


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_model(tmp_path)


def test_broken_json_gives_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "hidden_size": 64,\n  "vocab_size": \n}')
    with pytest.raises(UserError, match="line 4 is not JSON"):
        load_model(path)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="found list, expected a JSON object"):
        load_model(path)


def test_binary_rubbish_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(path)


def test_an_unknown_name_gets_the_nearest_names() -> None:
    expected = r"unknown model 'lama-3\.1-8b'; nearest: llama-3\.1-8b.*see: simulate --list models, or give a config"
    with pytest.raises(UserError, match=expected):
        load_model("lama-3.1-8b")


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(UserError, match="empty name"):
        load_model("")
