"""What fits and what does not, with numbers that can be checked by hand."""

import pytest

from simulator.device import load_device
from simulator.engine import EngineSettings
from simulator.errors import UserError
from simulator.memory import kv_byte_per_tok, plan_memory, weights_byte
from simulator.model import load_model
from simulator.parallel import Parallelism
from simulator.precision import choose_precision

LLAMA_8B, LLAMA_70B = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"


def setup(model, gpu, weights=None, kv=None):
    model, device = load_model(model), load_device(gpu)
    return model, device, choose_precision(model, device, weights, kv_cache=kv)[0]


def test_weights_of_known_checkpoints():
    model, _, bf16 = setup(LLAMA_8B, "orin")
    assert weights_byte(model, bf16) == 2 * model.parameters()
    # The published W4A16 checkpoint of this model takes 5.7 GB: 16-bit embedding and head, 4-bit layers.
    assert weights_byte(model, setup(LLAMA_8B, "orin", "int4")[2]) == pytest.approx(5.7e9, rel=0.03)
    # gpt-oss-20b is published at 12.8 GiB with its experts in mxfp4.
    gpt, _, own = setup("openai/gpt-oss-20b", "h100")
    assert weights_byte(gpt, own) == pytest.approx(12.8 * 2**30, rel=0.03)


def test_kv_cache_of_grouped_query_attention_counts_kv_heads():
    model, _, bf16 = setup(LLAMA_8B, "orin")
    assert kv_byte_per_tok(model, bf16) == 2 * 8 * 128 * 32 * 2
    assert kv_byte_per_tok(model, setup(LLAMA_8B, "h100", kv="fp8")[2]) == 8 * 128 * 32 * 2


def test_the_parts_fill_the_usable_memory():
    plan = plan_memory(*setup(LLAMA_8B, "orin"), EngineSettings())
    used = plan.weights_byte + plan.activation_byte + plan.overhead_byte + plan.kv_capacity_tok * plan.kv_byte_per_tok
    block = plan.kv_byte_per_tok * plan.block_size
    assert 0 <= plan.usable_byte - used < block
    assert plan.usable_byte == 0.9 * plan.capacity_byte


def test_more_memory_and_fewer_bits_hold_more_tokens():
    small = plan_memory(*setup(LLAMA_8B, "orin-agx-32gb"), EngineSettings()).kv_capacity_tok
    large = plan_memory(*setup(LLAMA_8B, "orin-agx-64gb"), EngineSettings()).kv_capacity_tok
    fewer_bits = plan_memory(*setup(LLAMA_8B, "orin-agx-64gb", "int4"), EngineSettings()).kv_capacity_tok
    assert small < large < fewer_bits


def test_out_of_memory_says_how_much_is_missing_and_what_would_fit():
    with pytest.raises(UserError) as error:
        plan_memory(*setup(LLAMA_70B, "orin"), EngineSettings())
    message = str(error.value)
    assert "GiB are missing" in message and "int4" in message and "fp8" not in message.split(";")[-1]
    with pytest.raises(UserError, match="no weight format"):
        plan_memory(*setup(LLAMA_70B, "orin-nano"), EngineSettings())


def test_the_remedy_names_what_is_at_fault():
    hybrid = setup("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "l4")
    with pytest.raises(UserError, match=r"recurrent state.*lower --max-num-seqs"):
        plan_memory(*hybrid, EngineSettings())
    plan_memory(*hybrid, EngineSettings(max_num_seqs=8))
    with pytest.raises(UserError, match="own mxfp4"):
        plan_memory(*setup("openai/gpt-oss-120b", "h100", "bf16"), EngineSettings())


def test_what_one_device_cannot_hold_four_can():
    model, device, bf16 = setup(LLAMA_70B, "h100")
    with pytest.raises(UserError, match="GiB are missing"):
        plan_memory(model, device, bf16, EngineSettings())
    plan = plan_memory(model, device, bf16, EngineSettings(), Parallelism(tp=4))
    assert plan.weights_byte == pytest.approx(2 * model.parameters() / 4, rel=1e-3)
    assert plan.kv_byte_per_tok == kv_byte_per_tok(model, bf16) / 4
    used = plan.weights_byte + plan.activation_byte + plan.overhead_byte + plan.kv_capacity_tok * plan.kv_byte_per_tok
    assert 0 <= plan.usable_byte - used < plan.kv_byte_per_tok * plan.block_size


@pytest.mark.parametrize(
    ("name", "weights", "expected_byte"),
    [
        # One byte for each of 671 B and 30.5 B weights; a second one for those of embedding and head.
        ("deepseek-ai/DeepSeek-V3", "fp8-block", 671e9 + 2 * 129_280 * 7168),
        ("Qwen/Qwen3-30B-A3B", "fp8-block", 30.5e9 + 2 * 151_936 * 2048),
    ],
)
def test_quantised_checkpoints(name, weights, expected_byte):
    model, _, precision = setup(name, "h100", weights)
    assert weights_byte(model, precision) == pytest.approx(expected_byte, rel=0.005)


def test_four_bit_formats_in_order_of_their_scales():
    sizes = [weights_byte(*setup(LLAMA_8B, "b200", w)[::2]) for w in ("int4", "mxfp4", "nvfp4", "fp8", "bf16", "fp32")]
    assert sizes == sorted(sizes)


def test_layer_cast_takes_no_more_memory():
    model, device = load_model(LLAMA_8B), load_device("h100")
    plain, cast = (choose_precision(model, device, "bf16", activations)[0] for activations in (None, "fp32"))
    assert weights_byte(model, cast) == weights_byte(model, plain)
    assert kv_byte_per_tok(model, cast) == kv_byte_per_tok(model, plain)


def test_more_tokens_and_sequences_in_a_step_leave_less_for_the_cache():
    model, device, bf16 = setup(LLAMA_8B, "h100")
    small, tokens, both = (
        plan_memory(model, device, bf16, EngineSettings(max_num_batched_tokens=n, max_num_seqs=s)).kv_blocks
        for n, s in ((2048, 128), (16384, 128), (16384, 1024))
    )
    assert small > tokens > both


def test_windowed_layers_keep_their_window_where_the_engine_frees_blocks():
    """Half of gpt-oss's layers see 128 tokens: sequences of 4,096 cost little more than half of what they would."""
    model, _, precision = setup("openai/gpt-oss-20b", "h100")
    every, freed = kv_byte_per_tok(model, precision), kv_byte_per_tok(model, precision, held_tok=4096)
    assert freed == pytest.approx(every * (1 + (128 + 16) / 4096) / 2)
    assert kv_byte_per_tok(model, precision, held_tok=100) == every
    chunked, _, bf16 = setup("meta-llama/Llama-4-Scout-17B-16E-Instruct", "h100")
    assert kv_byte_per_tok(chunked, bf16, held_tok=100_000) == kv_byte_per_tok(chunked, bf16)


def test_communicators_take_memory_of_every_device():
    model, device, bf16 = setup(LLAMA_8B, "h100")
    one, two = (plan_memory(model, device, bf16, EngineSettings(), Parallelism(tp=tp)) for tp in (1, 2))
    assert one.overhead_byte == pytest.approx(1.79 * 2**30, rel=0.01)
    ampere = plan_memory(*setup(LLAMA_8B, "a100"), EngineSettings())
    assert ampere.overhead_byte == pytest.approx(1.39 * 2**30, rel=0.06)
    assert two.overhead_byte == pytest.approx(2 * one.overhead_byte)
    assert one.usable_byte == pytest.approx(0.9 * 79.2 * 2**30)
