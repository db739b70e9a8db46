"""Request lengths and numbers of a measured run."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from calibration.records import RunRecord
from calibration.workloads import CLOSED_LOOP_ROUNDS, DATASETS, datasets, workload_of
from simulator.errors import UserError


def record(**columns) -> RunRecord:
    found = {"load": "closed_loop", "concurrency": 8, "num_requests": 400, "input_tok": 900.5, "output_tok": 300.25}
    return RunRecord(run_id="r", source="s", gpu="h100-sxm", model="m", **(found | columns))


def changed(base: RunRecord, **columns) -> RunRecord:
    return msgspec.structs.replace(base, **columns)


@pytest.mark.parametrize(
    "spread", ["fixed", "", "uniform:0.8", "uniform:0", *(f"dataset:{name}" for name in datasets())]
)
def test_the_mean_of_the_lengths_is_the_recorded_one(spread):
    requests = workload_of(record(length_spread=spread or None)).requests
    assert requests.prompt_tok.mean() == pytest.approx(900.5, abs=1.0 / 400)
    assert requests.output_tok.mean() == pytest.approx(300.25, abs=1.0 / 400)


def test_fixed_lengths_differ_by_rounding_only():
    requests = workload_of(record(length_spread="fixed", input_tok=127.7)).requests
    assert set(requests.prompt_tok) == {127, 128}
    assert set(workload_of(record(length_spread="fixed", input_tok=128)).requests.prompt_tok) == {128}


def test_uniform_lengths_fill_their_interval():
    prompt = workload_of(record(length_spread="uniform:0.8", input_tok=900, num_requests=2000)).requests.prompt_tok
    assert 799 <= prompt.min() <= 802 and 998 <= prompt.max() <= 1001  # 0.8 L .. L with mean 900: L = 1000
    assert prompt.std() == pytest.approx(200 / 12**0.5, rel=0.01)


@pytest.mark.parametrize("name", sorted(datasets()))
def test_a_data_set_has_its_spread(name):
    requests = workload_of(record(length_spread=f"dataset:{name}", num_requests=4000)).requests
    assert requests.prompt_tok.std() / requests.prompt_tok.mean() == pytest.approx(datasets()[name].input_cv, rel=0.05)
    assert requests.output_tok.std() / requests.output_tok.mean() == pytest.approx(datasets()[name].output_cv, rel=0.05)


def test_every_data_set_states_its_source():
    blocks = DATASETS.read_text().split("\n[")[1:]
    assert len(blocks) == len(datasets()) and all("\nsource = " in block for block in blocks)


def test_the_same_record_means_the_same_requests():
    one, two = (workload_of(record(length_spread="dataset:sharegpt")).requests for _ in range(2))
    np.testing.assert_array_equal(one.prompt_tok, two.prompt_tok)
    np.testing.assert_array_equal(one.output_tok, two.output_tok)
    assert abs(np.corrcoef(one.prompt_tok, one.output_tok)[0, 1]) < 0.2  # drawn apart


def test_lengths_are_cut_at_max_model_len_and_keep_their_mean():
    requests = workload_of(record(length_spread="dataset:lm-arena-chat"), max_model_len=1500).requests
    assert (requests.prompt_tok + requests.output_tok).max() <= 1500
    assert requests.prompt_tok.mean() == pytest.approx(900.5, abs=0.1)
    assert requests.output_tok.mean() == pytest.approx(300.25, rel=0.02)


def test_how_many_requests():
    base = record(num_requests=None)
    closed = workload_of(base)
    assert len(closed.requests) == CLOSED_LOOP_ROUNDS * 8 and closed.requests.in_flight == 8
    assert any("per client" in sentence for sentence in closed.assumptions)
    assert len(workload_of(changed(base, load="burst")).requests) == 8
    burst = workload_of(changed(base, load="burst", num_requests=50)).requests
    assert len(burst) == burst.in_flight == 50
    assert len(workload_of(changed(base, load="static_batch", num_requests=50)).requests) == 8
    assert workload_of(changed(base, load="open_loop", num_requests=50)).requests.in_flight == 0
    assert workload_of(changed(base, concurrency=500, num_requests=20)).requests.in_flight == 20


def test_parallel_samples_share_their_prompt():
    requests = workload_of(record(load="parallel_sampling", input_tok=130, output_tok=50)).requests
    assert len(requests) == 8 and set(requests.prompt_tok) == set(requests.shared_prefix_tok) == {130}


def test_shared_prefixes_are_a_share_of_the_prompt():
    requests = workload_of(record(length_spread="dataset:lm-arena-chat")).requests
    assert requests.shared_prefix_tok.sum() / requests.prompt_tok.sum() == pytest.approx(0.6, abs=0.01)
    assert workload_of(record(length_spread="dataset:gpqa")).requests.shared_prefix_tok.sum() == 0


def test_a_data_set_that_nobody_described_gets_the_spread_of_a_chat():
    workload = workload_of(record(length_spread="dataset:nobody"))
    lengths = workload.requests.output_tok
    assert 0.5 < lengths.std() / lengths.mean() < 1.1 and any("nobody" in line for line in workload.assumptions)


def spread_of(lengths) -> float:
    return float(lengths.std() / lengths.mean())


def test_a_spread_that_was_measured_takes_the_place_of_the_assumed_one():
    told = record(length_spread="dataset:nobody", num_requests=4000, flags="input_cv:0.25;output_cv:1.5")
    workload = workload_of(told)
    assert spread_of(workload.requests.prompt_tok) == pytest.approx(0.25, rel=0.02)
    assert spread_of(workload.requests.output_tok) == pytest.approx(1.5, rel=0.1)
    assert workload.assumptions == ()
    half = workload_of(changed(told, flags="input_cv:0.25"))
    assert spread_of(half.requests.prompt_tok) == pytest.approx(0.25, rel=0.02)
    assert [line.split()[0] for line in half.assumptions] == ["output"]
    alike = workload_of(changed(told, flags="input_cv:0;output_cv:0", input_tok=64, output_tok=32)).requests
    assert set(alike.prompt_tok) == {64} and set(alike.output_tok) == {32}
    shared = workload_of(changed(told, length_spread="dataset:lm-arena-chat"))
    assert ["share" in line for line in shared.assumptions] == [True]
    fixed = workload_of(changed(told, length_spread="fixed")).requests  # only data sets have a spread to replace
    assert spread_of(fixed.prompt_tok) < 0.001


def test_clients_in_a_loop_are_not_kept_in_step_when_the_spread_is_not_stated():
    workload = workload_of(record(length_spread=None))
    lengths = workload.requests.output_tok
    assert 0.02 < lengths.std() / lengths.mean() < 0.1 and any("not stated" in line for line in workload.assumptions)


def test_replicas_split_requests_and_clients():
    requests = workload_of(record(), dp=4).requests
    assert len(requests) == 100 and requests.in_flight == 2


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"length_spread": "uniform:2"}, "uniform:r with r from 0 to 1"),
        ({"length_spread": "uniform:x"}, "uniform:r with r from 0 to 1"),
        ({"length_spread": "normal"}, "expected fixed, uniform:r or dataset:NAME"),
        ({"input_tok": None}, "input_tok or output_tok not stated"),
        ({"concurrency": None}, "concurrency or num_requests not stated"),
        ({"load": "parallel_sampling", "concurrency": None}, "concurrency or num_requests not stated"),
        ({"length_spread": "dataset:sharegpt", "flags": "input_cv:wide"}, "flag 'input_cv:wide', expected a number"),
        ({"length_spread": "dataset:sharegpt", "flags": "output_cv:-0.5"}, "flag 'output_cv:-0.5', expected a number"),
        ({"length_spread": "dataset:sharegpt", "flags": "output_cv:nan"}, "flag 'output_cv:nan', expected a number"),
        ({"num_requests": 10**8}, "at most 200,000"),
    ],
)
def test_bad_records_get_one_sentence(columns, what):
    with pytest.raises(UserError, match=what):
        workload_of(record(**columns))


def test_longer_than_the_model_reads():
    with pytest.raises(UserError, match="exceed max_model_len"):
        workload_of(record(), max_model_len=1200)
    with pytest.raises(UserError, match="cannot be spread over 500 replicas"):
        workload_of(record(), dp=500)
