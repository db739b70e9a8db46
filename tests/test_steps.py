"""Many steps in arrays, and one step in floats: the same numbers as one by one."""

import numpy as np
import pytest
from deployments import GPUS, MODELS, device_named, physics, splits_of
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.batch import Batch, PrefillChunk
from simulator.floats import on_floats
from simulator.kernels.attention import decode_attention_time, prefill_attention_time
from simulator.keys import KeyRule
from simulator.profile_choice import load_calibration
from simulator.roofline import compute_share, smooth_maximum
from simulator.steps import Steps

RULES = (KeyRule(), KeyRule(100))
chunks = st.builds(PrefillChunk, st.integers(1, 3000), st.integers(0, 3000), st.booleans())
batches = st.builds(
    lambda prefill, contexts: Batch(tuple(prefill), np.array(contexts, dtype=np.int64)),
    st.lists(chunks, max_size=3),
    st.lists(st.integers(1, 16_384), max_size=20),
).filter(lambda batch: batch.new_tok > 0)


@st.composite
def deployments(draw):
    model = draw(st.sampled_from(MODELS))
    options = {"cuda_graphs": draw(st.booleans()), "async_scheduling": draw(st.booleans())}
    parallel = draw(st.sampled_from(splits_of(model)))
    return physics(draw(st.sampled_from(GPUS)), model, parallel=parallel, **options)


@settings(max_examples=60, deadline=None)
@given(deployments(), st.lists(batches, min_size=1, max_size=6))
def test_pricing_many_steps_is_pricing_each(p, batches):
    costs = p.price(Steps.from_batches(batches, p.rules))
    singles = [p.step(batch) for batch in batches]
    assert costs.seconds == pytest.approx([single.seconds for single in singles], rel=1e-12)
    assert costs.joules == pytest.approx([single.joules for single in singles], rel=1e-12)
    for cause, share in costs.shares.items():
        assert share == pytest.approx([single.shares[cause] for single in singles], rel=1e-9, abs=1e-15), cause
    assert sum(costs.shares.values()) == pytest.approx(costs.seconds, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(deployments(), st.lists(st.integers(1, 16_384), min_size=1, max_size=6), st.integers(1, 40))
def test_a_run_of_decode_steps_is_the_steps_one_by_one(p, context, steps):
    start = np.array(context)
    run = p.decode_run(start, steps)
    singles = [p.step(Batch((), start + j)) for j in range(steps)]
    assert run.seconds == pytest.approx([s.seconds for s in singles], rel=1e-12)
    assert run.joules == pytest.approx([s.joules for s in singles], rel=1e-12)
    assert sum(run.shares.values()) == pytest.approx(run.seconds.sum(), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(batches, min_size=2, max_size=6), st.randoms())
def test_order_and_company_do_not_matter(batches, random):
    p = physics("h100", MODELS[3])
    steps = Steps.from_batches(batches, p.rules)
    order = list(range(len(batches)))
    random.shuffle(order)
    shuffled = p.price(steps.take(np.array(order))).seconds
    assert shuffled == pytest.approx(p.price(steps).seconds[order], rel=1e-12)
    joined = Steps.concatenate([steps.take(np.array([i])) for i in order])
    assert p.price(joined).seconds == pytest.approx(shuffled, rel=1e-12)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8), st.integers(1, 60))
def test_a_decode_run_has_the_sums_of_its_batches(contexts, steps):
    start = np.array(contexts)
    run = Steps.from_decode_run(start, steps, RULES)
    single = Steps.from_batches([Batch((), start + j) for j in range(steps)], RULES)
    for name in Steps.__dataclass_fields__:
        assert getattr(run, name).tolist() == getattr(single, name).tolist(), name


def test_sums_of_a_mixed_batch_by_hand():
    batch = Batch((PrefillChunk(3, 0), PrefillChunk(2, 200, completes=False)), np.array([9, 150]))
    steps = Steps.from_batches([batch], RULES)
    assert len(steps) == 1 and steps.new_tok.tolist() == [7.0]
    assert (steps.decode_sequences[0], steps.prefill_sequences[0], steps.sampled[0]) == (2, 2, 3)
    assert (steps.prefill_tok[0], steps.prefill_cached_tok[0]) == (5, 200)
    assert steps.decode_keys.tolist() == [[10 + 151, 10 + 100]]
    assert steps.prefill_pairs.tolist() == [[6 + 201 + 202, 6 + 200]]
    assert steps.prefill_keys.tolist() == [[3 + 202, 3 + 101]]


def test_no_steps_cost_nothing():
    p = physics("h100")
    none = Steps.from_decode_run(np.array([5]), 1, p.rules).take(np.array([], dtype=int))
    assert p.price(none).seconds.tolist() == []


# -- formulas on floats -------------------------------------------------------------------------------------------

heads = st.sampled_from([(32, 8, 128), (28, 4, 128), (8, 1, 64), (1, 1, 256), (16, 16, 80), (128, 1, 576)])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(GPUS), heads, st.sampled_from([1.0, 2.0]), st.integers(1, 512), st.integers(1, 20_000))
def test_attention_on_floats_is_attention_in_arrays(gpu, shape, kv_byte, n, each):
    (q_heads, kv_heads, head_dim), device = shape, device_named(gpu)
    parameters = load_calibration(device).parameters
    same = {
        "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim, "kv_byte": kv_byte, "device": device,
        "kv_elements_per_tok": 2 * kv_heads * head_dim, "flop_per_pair": 4.0 * q_heads * head_dim,
    }  # fmt: skip
    decode = (float(n), float(n * each))
    prefill = (float(n), float(n * each), n * each * (each + 1) / 2.0, float(n * each))
    more = {"query_elements_per_tok": 2 * q_heads * head_dim, "p": parameters.prefill}
    for formula, numbers, options in (
        (decode_attention_time, decode, {"p": parameters.decode}),
        (prefill_attention_time, prefill, more),
    ):
        arrays = formula(*(np.array([number]) for number in numbers), **same, **options)
        floats = on_floats(formula)(*numbers, **same, **options)
        assert [type(part) for part in floats] == [float] * 3
        assert floats == pytest.approx([float(part[0]) for part in arrays], rel=1e-12)


@given(st.floats(0.0, 1e3, allow_subnormal=False), st.floats(0.0, 1e3, allow_subnormal=False), st.floats(1.0, 6.0))
def test_rooflines_on_floats_are_rooflines_in_arrays(compute_s, memory_s, exponent):
    for formula in (smooth_maximum, compute_share):
        array = formula(np.array([compute_s]), np.array([memory_s]), exponent)
        assert on_floats(formula)(compute_s, memory_s, exponent) == pytest.approx(float(array[0]), rel=1e-12)


def test_rebuilding_for_floats_leaves_the_arrays_alone():
    on_floats(smooth_maximum)
    assert smooth_maximum(np.array([3.0, 0.0]), np.array([4.0, 0.0]), 2.0).tolist() == [5.0, 0.0]
