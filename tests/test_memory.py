"""What fits and what does not, with numbers that can be checked by hand."""

import pytest

from simulator.device import load_device
from simulator.engine import EngineSettings
from simulator.errors import UserError
from simulator.memory import kv_byte_per_tok, plan_memory, weights_byte
from simulator.model import load_model
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
