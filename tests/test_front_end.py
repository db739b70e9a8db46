"""First tokens in a closed loop: what clients and the tokeniser add to what the engine does."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.condensed import linear_weights
from calibration.front_end import front_end_s, with_front_end
from calibration.records import RunRecord
from calibration.setup import resolve, step_model
from calibration.trajectory import FOLLOW_LAG_STEPS, trajectory_of
from calibration.trajectory_metrics import metrics
from simulator.device import load_device
from simulator.engine.front_end import TOGETHER, FrontEnd, tokenised_s
from simulator.profile_choice import load_calibration


def loop(**changes):
    stated = {
        "run_id": "a", "source": "inferencex", "gpu": "h100-sxm", "model": "Qwen/Qwen3-8B", "engine": "vllm",
        "engine_version": "0.18.0", "load": "closed_loop", "concurrency": 8.0, "num_requests": 80, "input_tok": 900.0,
        "output_tok": 90.0, "length_spread": "uniform:0.8",
    }  # fmt: skip
    return RunRecord(**{**stated, **changes})


@pytest.fixture(scope="module")
def engine():
    return load_calibration(load_device("h100"), None, "vllm", "0.18.0").parameters.engine


def test_prompts_that_come_together_wait_for_each_others_tokens(engine):
    prompt_s = engine.prompt_tok_s * 900
    alone, further, share = front_end_s(resolve(loop()), engine)
    assert (alone, further, share) == pytest.approx((engine.request_s + prompt_s, 7 * prompt_s, 0.1))
    many = front_end_s(resolve(loop(concurrency=200.0, num_requests=None)), engine)
    assert many[1:] == pytest.approx(((TOGETHER - 1) * prompt_s, 0.1))
    burst = front_end_s(resolve(loop(load="burst", num_requests=8)), engine)
    assert burst[1:] == pytest.approx((7 * prompt_s, 1.0))
    single = front_end_s(resolve(loop(load="static_batch", concurrency=1.0, num_requests=1)), engine)
    assert single[1:] == (0.0, 0.0)


def test_only_what_contains_the_first_token_grows(engine):
    setup = resolve(loop())
    alone, further, share = front_end_s(setup, engine)
    values = dict.fromkeys(("ttft_s_mean", "ttft_s_median", "ttft_s_p99", "e2e_s_mean", "tpot_s_mean"), 1.0)
    found = with_front_end(values, setup, engine)
    assert found["tpot_s_mean"] == 1.0
    assert found["ttft_s_mean"] == found["e2e_s_mean"] == pytest.approx(1.0 + alone + share * further)
    assert found["ttft_s_median"] == pytest.approx(1.0 + alone)
    assert found["ttft_s_p99"] == pytest.approx(1.0 + alone + further)


def test_a_following_request_waits_half_a_step_more():
    setup = resolve(loop())
    run = trajectory_of(setup.record, setup.model, setup.settings, setup.kv_blocks, 1, setup.async_scheduling)
    assert run.follow_lag_steps == FOLLOW_LAG_STEPS
    seconds = step_model(setup, load_calibration(load_device("h100"), None, "vllm", "0.18.0")).price(run.steps).seconds
    prompt = dataclasses.replace(run, follow_lag_steps=0.0)
    follows = run.submitted > 0
    row = np.minimum(run.submitted[follows], len(seconds) - 1)
    expected = FOLLOW_LAG_STEPS * seconds[row].sum() / len(follows)
    with_lag, without = (metrics(which, seconds)["ttft_s_mean"] for which in (run, prompt))
    assert with_lag - without == pytest.approx(expected)
    assert linear_weights(run, "ttft_s_mean") @ seconds == pytest.approx(with_lag)
    assert linear_weights(run, "tpot_s_mean") @ seconds == pytest.approx(metrics(prompt, seconds)["tpot_s_mean"])


# -- the thread that tokenises, in traffic ---------------------------------------------------------------------


def told_as_they_come(arrival_s, prompt_tok, prompt_tok_s):
    """`tokenised_s` by the front end that does not know who will come."""
    front, ready, due_s = FrontEnd(prompt_tok_s), [0.0] * len(arrival_s), None

    def run_until(time_s):
        nonlocal due_s
        while due_s is not None and due_s < time_s:
            numbers, end_s, following_s = front.tokenise(due_s)
            for number in numbers:
                ready[number] = end_s
            due_s = following_s

    for number, (time_s, tokens) in enumerate(zip(arrival_s, prompt_tok)):
        run_until(time_s)
        begins_s = front.come(number, int(tokens), time_s)
        due_s = begins_s if begins_s is not None else due_s
    run_until(np.inf)
    return np.array(ready)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.3]), st.integers(1, 500)), min_size=1, max_size=100),
    st.sampled_from([0.0, 1e-5, 1e-3]),
)
def test_both_front_ends_agree(requests, prompt_tok_s):
    gaps, tokens = np.array(requests).T
    arrival_s = np.cumsum(gaps)
    ready = tokenised_s(arrival_s, tokens.astype(np.int64), prompt_tok_s)
    np.testing.assert_allclose(ready, told_as_they_come(arrival_s, tokens, prompt_tok_s), rtol=1e-12)
    assert (ready >= arrival_s + prompt_tok_s * tokens - 1e-12).all() and (np.diff(ready) >= 0).all()


def test_a_lone_prompt_takes_its_own_time_and_a_burst_that_of_all():
    alone = tokenised_s(np.array([0.0, 10.0]), np.array([100, 300]), 1e-3)
    assert alone.tolist() == pytest.approx([0.1, 10.3])
    burst = tokenised_s(np.zeros(TOGETHER + 1), np.full(TOGETHER + 1, 100), 1e-3)
    assert burst.tolist() == pytest.approx([0.1 * TOGETHER] * TOGETHER + [0.1 * (TOGETHER + 1)])
